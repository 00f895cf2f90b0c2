"""Files: good ones, the examples, and what cannot be read."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from nfqlb.config.load import LARGEST, ConfigError, load, parse
from nfqlb.config.summary import duration, endpoint, summary
from nfqlb.core.spec import Config, Gateway, Real, Server, Timeouts, Virtual

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_there_are_examples() -> None:
    assert [path.name for path in EXAMPLES] == ["minimal.toml", "two-services.toml"]


def test_the_minimal_example() -> None:
    assert load(EXAMPLES[0]) == Config(
        gateway=Gateway(("eth0",), ("eth1",)),
        reals=(Real("web1", IPv4Address("10.0.0.1")), Real("web2", IPv4Address("10.0.0.2"))),
        virtuals=(
            Virtual("shop", IPv4Address("192.0.2.10"), (Server("web1", 80), Server("web2", 80)), port=80),
        ),
    )


def test_the_example_with_two_services() -> None:
    config = load(EXAMPLES[1])
    assert config.timeouts == Timeouts(900.0, 20.0, 10.0, 30.0)
    assert [(real.weight, real.max_connections, real.idle_timeout) for real in config.reals] == [
        (2, 0, 900),
        (1, 0, 900),
        (0.5, 500, 300),
    ]
    assert [(one.sticky, one.sticky_mask, one.sticky_group) for one in config.virtuals] == [
        (1800, 32, "shop"),
        (1800, 32, "shop"),
        (60, 24, ""),
    ]
    assert config.virtuals[2].servers == (Server("big", 8080), Server("small", 8080), Server("old", 8081))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_summary_of_an_example_fits_a_terminal(path: Path) -> None:
    text = summary(load(path))
    assert max(len(line) for line in text.split("\n")) <= 80
    assert not text.endswith("\n")
    assert all(line == line.rstrip() for line in text.split("\n"))


def test_the_summary() -> None:
    assert summary(load(EXAMPLES[1])).split("\n\n")[1:] == [
        "outside      eth0\n"
        "inside       eth1\n"
        "datapath     rewrite, queues 0 and 1\n"
        "room         200,000 connections, 1,000,000 sticky entries\n"
        "time-outs    idle 15m, half-open 20s, closing 10s, udp 30s\n"
        "other ports  dropped, but for echo",
        "shop-http: tcp 192.0.2.10:80, weighted-least-connections\n"
        "  sticky for 30m, client by client, shared in group shop\n"
        "  big    10.0.0.1:80  weight 2\n"
        "  small  10.0.0.2:80  weight 1\n"
        "  old    10.0.0.3:80  weight 0.5, at most 500 connections, idle 5m",
        "shop-https: tcp 192.0.2.10:443, weighted-least-connections\n"
        "  sticky for 30m, client by client, shared in group shop\n"
        "  big    10.0.0.1:443  weight 2\n"
        "  small  10.0.0.2:443  weight 1\n"
        "  old    10.0.0.3:443  weight 0.5, at most 500 connections, idle 5m",
        "api: tcp 192.0.2.20:80, least-connections\n"
        "  sticky for 1m, by client network /24\n"
        "  big    10.0.0.1:8080\n"
        "  small  10.0.0.2:8080\n"
        "  old    10.0.0.3:8081  at most 500 connections, idle 5m",
    ]


def test_the_summary_names_backups(tmp_path: Path, good_with: Callable[..., str]) -> None:
    """R027, R047: of a server beside it, of a virtual server below its servers; a backup takes part."""
    path = tmp_path / "gw.toml"
    text = good_with(real='backup = "web2"', virtual='backup = "web2"')
    path.write_text(text.replace('"web1", "web2"', '"web1:8080"'))
    assert summary(load(path)).split("\n\n")[2:] == [
        "shop: tcp 192.0.2.10:80, weighted-least-connections\n"
        "  web1  10.0.0.1:8080  weight 1, backup web2\n"
        "  where none of them can be chosen: web2, 10.0.0.2:80"
    ]


def test_the_summary_names_what_is_not_as_usual(tmp_path: Path, good_with: Callable[..., str]) -> None:
    path = tmp_path / "gw.toml"
    path.write_text(
        good_with(
            gateway='secure = true\ncount_on = "syn-ack"\nhold_addresses = false\nmetrics = "[::1]:9617"',
            virtual='on_failure = "reset"\nreject = "reset"\nageing = 2.5\nclamp = 20\nshadow = "rr"',
        )
    )
    text = summary(load(path))
    assert "other ports  dropped, but for echo\nsecure       true\ncount_on     syn-ack\n" in text
    assert "\nhold_addresses false\n" in text
    assert "\nmetrics      http://[::1]:9617/metrics\n" in text
    said = "on_failure = reset, reject = reset, ageing = 2.5, clamp = 20, shadow = round-robin"
    assert f"\n  {said}\n  web1 " in text


def test_the_summary_names_what_takes_no_part(tmp_path: Path, good_with: Callable[..., str]) -> None:
    path = tmp_path / "gw.toml"
    path.write_text(
        good_with(real="weight = 0", gateway='other_ports = "host"').replace('"web1", "web2"', '"web1"')
    )
    text = summary(load(path))
    assert text.startswith("1 virtual server, 2 real servers\n")
    assert "other ports  left to this machine\n" in text
    assert text.endswith("  web1  10.0.0.1:80  weight 0: no new clients\n\nin no virtual server: web2")


def test_the_summary_of_udp_ipv6_and_every_port(tmp_path: Path, good_with: Callable[..., str]) -> None:
    path = tmp_path / "gw.toml"
    text = good_with(timeouts='udp = "3m"', real="idle_timeout = 5", virtual='protocol = "udp"')
    for old, new in (("192.0.2.10", "2001:db8::10"), ("10.0.0.", "fd00::"), ("port = 80\n", "")):
        text = text.replace(old, new)
    path.write_text(text)
    shown = summary(load(path))
    assert "time-outs    idle 1h, half-open 30s, closing 10s, udp 3m\n" in shown
    assert shown.split("\n\n")[-1] == (
        "shop: udp 2001:db8::10 every port, weighted-least-connections\n"
        "  web1  fd00::1 every port  weight 1\n"
        "  web2  fd00::2 every port  weight 1"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.001, "0.001s"),
        (1, "1s"),
        (60, "1m"),
        (90, "90s"),
        (3600, "1h"),
        (5400, "90m"),
        (86400, "1d"),
        (31_535_999, "31535999s"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_endpoints_in_words() -> None:
    assert endpoint(IPv4Address("10.0.0.1"), 80) == "10.0.0.1:80"
    assert endpoint(IPv4Address("10.0.0.1"), None) == "10.0.0.1 every port"


def test_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "gw.toml"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLES[0].read_bytes().replace(b"\n", b"\r\n"))
    assert load(path) == load(EXAMPLES[0])


def test_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "missing.toml"
    assert refusal(path) == f"{path}: error: there is no such file"


def test_a_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: error: this is a directory\n      hint: name the file in it"


def test_paths_that_no_system_takes(tmp_path: Path) -> None:
    assert refusal(Path("a\0b")) == "a?b: error: cannot be read: embedded null byte"
    assert "error: cannot be read: File name too long" in refusal(tmp_path / ("x" * 300))
    file = tmp_path / "file"
    file.touch()
    assert refusal(file / "gw.toml") == f"{file}/gw.toml: error: cannot be read: Not a directory"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "gw.toml"
    path.write_bytes(b"[gateway]\noutside = 'eth0'\n# caf\xe9\n")
    assert refusal(path) == (
        f"{path}:3: error: the byte 0xe9 is not UTF-8 text\n      hint: save the file as UTF-8"
    )


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "gw.toml"
    path.write_bytes(b"#" * (LARGEST + 1))
    assert refusal(path) == f"{path}: error: longer than 4 MiB: no configuration"
    assert refusal(Path("/dev/zero")) == "/dev/zero: error: longer than 4 MiB: no configuration"


def test_a_file_that_may_not_be_read() -> None:
    class Locked(type(Path())):  # type: ignore[misc]  # root may read every file, so the refusal is made here
        def open(self, *args: object, **kwargs: object) -> None:
            raise PermissionError(13, "Permission denied")

    assert refusal(Locked("gw.toml")) == "gw.toml: error: no permission to read this file"


def test_a_thousand_servers(tmp_path: Path) -> None:
    path = tmp_path / "gw.toml"
    reals = [f'[[real]]\nname = "web{n}"\naddress = "10.1.{n >> 8}.{n & 255}"\n' for n in range(1, 1001)]
    names = ", ".join(f'"web{n}"' for n in range(1, 1001))
    virtual = f'[[virtual]]\nname = "v"\naddress = "192.0.2.1"\nport = 80\nservers = [{names}]\n'
    path.write_text("\n".join(['[gateway]\noutside = "a"\ninside = "b"', *reals, virtual]))
    config = load(path)
    assert len(config.virtuals[0].servers) == len(config.reals) == 1000
    assert summary(config).count("\n") > 1000


def test_the_summary_of_both_datapaths(good_with: Callable[..., str]) -> None:
    config = parse(good_with(gateway='datapath = "offload"\nqueue = 4'), "gw.toml")
    assert "datapath     offload, queue 4, NFLOG group 5\n" in summary(config)
    mixed = replace(config, virtuals=(*config.virtuals, replace(config.virtuals[0], datapath="rewrite")))
    assert "datapath     offload and rewrite, queues 4, 5 and 6, NFLOG group 5\n" in summary(mixed)
    assert "\n  datapath rewrite\n" in summary(mixed)
