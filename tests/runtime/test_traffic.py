"""Sums over counters that the kernel may lose, and what is said where nobody counts."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfqlb.core.spec import Config, Gateway, Virtual
from nfqlb.netfilter.accounting import Counter, Counters, label
from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.protocol import JSONObject
from nfqlb.runtime.rising import Rising
from nfqlb.runtime.traffic import Traffic

SHOP = Virtual("shop", ip_address("192.0.2.10"), (), port=80)
MAIL = Virtual("mail", ip_address("192.0.2.10"), (), port=25)
BOTH = Config(Gateway(("outside",), ("inside",)), (), (SHOP, MAIL))
NONE = Counters(Counter(0, 0), Counter(0, 0))


class Kernel:
    """Counters that a test moves: `shop` counts one packet of 100 bytes in and two of 1,000 out at a time."""

    def __init__(self) -> None:
        self.counts: dict[str, Counters] = {}
        self.asked: list[bool] = []  # whether to begin anew
        self.fault = ""

    def put(self, config: Config, present: Mapping[str, Counters] | None = None) -> None:
        self._fail()
        self.asked.append(present is None)
        labels = [label(each) for each in config.virtuals]
        self.counts = {each: (present or {}).get(each, NONE) for each in labels}

    def read(self) -> Mapping[str, Counters]:
        self._fail()
        return dict(self.counts)

    def pass_packets(self, virtual: Virtual = SHOP) -> None:
        (packets, octets), (packets_out, octets_out) = self.counts[label(virtual)]
        self.counts[label(virtual)] = Counters(
            Counter(packets + 1, octets + 100), Counter(packets_out + 2, octets_out + 2000)
        )

    def _fail(self) -> None:
        if self.fault:
            raise KernelError(self.fault)


class Site:
    """A gateway's traffic, with a clock that the test moves."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.now = 100.0
        self.traffic = Traffic(BOTH, self.kernel, lambda: self.now)
        self.traffic.begin()

    def passed(self, name: str = "shop") -> tuple[int, ...] | None:
        return self.traffic.totals().get(name)


@pytest.fixture
def site() -> Site:
    return Site()


def test_f34_a_counter_that_begins_anew_does_not_fall() -> None:
    rising = Rising()
    assert [rising.at(count) for count in (0, 5, 9, 2, 2, 4, 0, 1)] == [0, 5, 9, 11, 11, 13, 13, 14]
    rising.restart()
    assert [rising.at(count) for count in (3, 3)] == [17, 17], "more than before, and anew all the same"


def test_rows_have_the_numbers_of_both_directions(site: Site) -> None:
    site.kernel.pass_packets()
    rows: list[JSONObject] = [{"name": "shop"}, {"name": "mail"}, {"name": "gone"}]
    site.traffic.complete(rows)
    assert rows[0]["traffic"] == {"packets_in": 1, "bytes_in": 100, "packets_out": 2, "bytes_out": 2000}
    assert rows[1]["traffic"] == dict.fromkeys(("packets_in", "bytes_in", "packets_out", "bytes_out"), 0)
    assert rows[2]["traffic"] is None


def test_counters_that_somebody_has_cleared_are_made_anew_and_the_sums_go_on(site: Site) -> None:
    site.kernel.pass_packets()
    assert site.passed() == (1, 100, 2, 2000)
    site.kernel.counts = {}
    assert site.passed() is None, "not known for a moment, and no 0"
    site.now += 5
    assert site.passed() is None
    assert site.passed() == (1, 100, 2, 2000)
    for _ in range(3):
        site.kernel.pass_packets()
    assert site.passed() == (4, 400, 8, 8000)


def test_one_that_is_missing_has_all_made_anew(site: Site) -> None:
    site.kernel.pass_packets()
    del site.kernel.counts[label(MAIL)]
    site.now += 5
    assert site.passed() == (1, 100, 2, 2000)
    assert site.kernel.asked == [True, True]
    assert site.passed() == (1, 100, 2, 2000)
    assert site.passed("mail") == (0, 0, 0, 0)


def test_what_cannot_be_read_is_not_known(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.kernel.pass_packets()
    site.kernel.fault = "the kernel is shy"
    with caplog.at_level(logging.WARNING):
        assert (site.passed(), site.passed()) == (None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "packets and bytes of virtual servers are not counted: the kernel is shy"
    ]
    site.kernel.fault = ""
    assert site.passed() == (1, 100, 2, 2000)


def test_a_host_that_cannot_count_is_asked_again_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """nft may be installed while the gateway runs."""
    kernel = Kernel()
    kernel.fault = "nft is not installed"
    now = 0.0
    traffic = Traffic(BOTH, kernel, lambda: now)
    with caplog.at_level(logging.WARNING):
        traffic.begin()
        assert traffic.totals() == {}
    assert len(caplog.records) == 1
    kernel.fault = ""
    assert traffic.totals() == {}
    assert kernel.asked == [], "too soon"
    now = 5.0
    traffic.totals()
    assert traffic.totals() == {"shop": (0, 0, 0, 0), "mail": (0, 0, 0, 0)}


def test_virtual_servers_come_and_go(site: Site) -> None:
    """Who stays keeps its sums, by another name too; under another address it is another one."""
    site.kernel.pass_packets()
    site.kernel.pass_packets(MAIL)
    assert site.passed("mail") == (1, 100, 2, 2000)
    renamed, moved = replace(SHOP, name="store"), replace(MAIL, address=ip_address("192.0.2.20"))
    site.traffic.configured(replace(BOTH, virtuals=(renamed, moved)))
    assert site.traffic.totals() == {"store": (1, 100, 2, 2000), "mail": (0, 0, 0, 0)}
    site.traffic.configured(BOTH)
    assert site.traffic.totals() == {"shop": (1, 100, 2, 2000), "mail": (0, 0, 0, 0)}
    assert site.kernel.asked == [True, False, False]


def test_a_new_configuration_where_the_counters_have_gone(site: Site) -> None:
    site.kernel.pass_packets()
    assert site.passed() == (1, 100, 2, 2000)
    site.kernel.counts = {}
    site.traffic.configured(BOTH)
    assert site.passed() == (1, 100, 2, 2000)
    assert site.kernel.asked == [True, True]
