"""What a start begins with: its file, or what ran before where that is of no use."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from nfqlb.config.load import ConfigError
from nfqlb.core.spec import Config
from nfqlb.netfilter import host
from nfqlb.netfilter.host import Finding
from nfqlb.netfilter.procfs import Namespace
from nfqlb.netfilter.state import Kept
from nfqlb.runtime import beginning
from nfqlb.runtime.handover import Source

GOOD = """
[gateway]
outside = "eth0"
inside = "eth1"
[[real]]
name = "web1"
address = "10.0.0.1"
[[virtual]]
name = "shop"
address = "192.0.2.10"
port = 80
servers = ["web1"]
"""
OTHER = GOOD.replace("eth0", "eth9")
BROKEN = GOOD.replace("outside", "outsite") + "flavour = 1\n"
NEVER = Finding("error", "outside interface eth9 does not exist", "there are: eth0, eth1")
ODD = Finding("warning", "odd")


def machine(*outsides: str) -> Callable[..., list[Finding]]:
    """One that has these interfaces, and another oddity."""
    return lambda config, *, alone: [ODD] if config.gateway.outside[0] in outsides else [NEVER, ODD]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(host, "check", machine("eth0"))
    return Source(tmp_path / "nfqlb.toml")


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "run", Namespace(4026531840, 7, "boot-1"))


def begun(source: Source, text: str, kept: Kept | None) -> tuple[Config, str, str] | None:
    source.path.write_text(text)
    return beginning.choose(source, kept, alone=False)


def outside(config: Config) -> str:
    return config.gateway.outside[0]


def test_a_good_file_counts_whatever_ran_before(source: Source, kept: Kept) -> None:
    kept.write(OTHER)
    begins = begun(source, GOOD, kept)
    assert begins is not None
    assert (outside(begins[0]), *begins[1:]) == ("eth0", GOOD, "")


def test_where_nothing_ran_before_a_broken_file_is_refused(source: Source, kept: Kept) -> None:
    for there in (None, kept):
        with pytest.raises(ConfigError, match=r"nfqlb.toml:3: error: .*outsite"):
            begun(source, BROKEN, there)
        assert begun(source, OTHER, there) is None


def test_a_broken_file_leaves_what_ran_before(
    source: Source, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """Every mistake is in the log, with its line."""
    kept.write(GOOD)
    begins = begun(source, BROKEN, kept)
    assert begins is not None
    assert (outside(begins[0]), *begins[1:]) == ("eth0", GOOD, f"{source.path} has 2 errors")
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert [line for line in errors if line.startswith(f"{source.path}:3: error: ")]
    assert errors[-1] == f"2 errors in {source.path}"


def test_a_file_that_is_gone_leaves_what_ran_before(source: Source, kept: Kept) -> None:
    kept.write(GOOD)
    begins = beginning.choose(source, kept, alone=True)
    assert begins is not None
    assert begins.trouble == f"{source.path} has an error"


def test_a_file_that_is_nothing_for_this_machine_leaves_what_ran_before(
    source: Source, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write(GOOD)
    begins = begun(source, OTHER, kept)
    assert begins is not None
    assert begins[2] == f"{source.path} cannot run on this machine: outside interface eth9 does not exist"
    assert "outside interface eth9 does not exist; there are: eth0, eth1" in caplog.messages


def test_what_this_machine_cannot_run_any_more_is_of_no_use(source: Source, kept: Kept) -> None:
    """It may be able to with the next attempt, so that is no mistake of the file's."""
    kept.write(OTHER)
    assert begun(source, BROKEN, kept) is None
    assert begun(source, OTHER, kept) is None


def test_whether_a_start_would_go_on_is_known_before(source: Source, kept: Kept) -> None:
    source.path.write_text(OTHER)
    assert not beginning.goes_on(source, source.read(), kept, alone=True)  # nothing ran before
    kept.write(OTHER)
    assert not beginning.goes_on(source, source.read(), kept, alone=True)  # the same did
    kept.write(GOOD)
    assert beginning.goes_on(source, source.read(), kept, alone=True)


def test_what_another_version_ran_may_be_of_no_use(source: Source, kept: Kept) -> None:
    kept.write("[gateway]\nsteam = true\n")
    with pytest.raises(ConfigError):
        begun(source, BROKEN, kept)


def test_that_it_cannot_be_kept_is_no_reason_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    beginning.keep(Kept(tmp_path / "file", Namespace(1, 1, "boot-1")), GOOD)
    assert "cannot be written" in caplog.text
