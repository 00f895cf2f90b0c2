"""The guard on the real kernel: what others take from the gateway is back within seconds.

Each test takes something else. The guard is called as the supervisor calls it, in the test's own process;
with whole gateways and traffic it is tried in test_guard_gateway.py.
"""

import os
import re
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nfqlb.netfilter import address, rules, sysctl
from nfqlb.netfilter.changes import Changes
from nfqlb.netfilter.repair import settings
from nfqlb.netfilter.state import Record
from nfqlb.runtime.errand import Errand
from nfqlb.runtime.guard import Guard
from nfqlb.runtime.protocol import JSON, JSONObject
from tests.netns.site import SIX, VIP, VIP6, Site, built, entered, wait_until
from tests.netns.test_rules import kind

__all__ = ["kind"]  # a fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

FOREIGN = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -s 203.0.113.9/32 -j DROP\nCOMMIT\n"
IN_TIME = 5.0
"""Seconds after which what was taken must be back."""


class Guarded:
    """A site whose gateway has a guard; `said` are its events, as (level, text)."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.said: list[tuple[str, str]] = []
        self.state: JSONObject = {}
        self.bound: list[list[str]] = []
        self.selector = selectors.DefaultSelector()
        self.guard = Guard(SIX, self.selector, self._say, self.state, self._rebind)
        self.longest = 0.0  # seconds that the guard has kept its caller from anything else

    def _say(self, kind: str, name: str, text: str, *, level: str = "info") -> None:
        assert kind in ("rules", "queue")
        self.said.append((level, text))

    def _rebind(self) -> list[str]:
        return self.bound.pop(0) if self.bound else []

    def serve(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """What the supervisor does, for so long or until something is so; whether it came to that."""
        end, tick = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            for key, mask in self.selector.select(0.02):
                begun = time.monotonic()
                key.data(mask)
                self.longest = max(self.longest, time.monotonic() - begun)
            if time.monotonic() >= tick:
                tick = time.monotonic() + 1.0
                self.guard.tick()
            if until():
                return True
        return False

    def run(self, *commands: str) -> None:
        """Somebody else's shell commands in the gateway's namespace."""
        for command in commands:
            subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=20)

    @property
    def well(self) -> bool:
        """Whether all that the configuration needs is there; asked of the kernel, not of the guard."""
        here = {str(placement.address) for placement in address.held()}
        return rules.verify(SIX) == [] and {VIP, VIP6} <= here and not sysctl.overwritten(settings(SIX))

    def repaired(self, count: int = 1) -> bool:
        """Whether so many repairs have been made, in time."""
        return self.serve(IN_TIME, lambda: self.state["repairs"] == count)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from built(tmp_path)


@contextmanager
def guarding(site: Site) -> Iterator[Guarded]:
    site.number_ipv6()
    with site.balancing(SIX), entered(site.gateway):
        guarded = Guarded(site)
        try:
            yield guarded
        finally:
            guarded.guard.close()
            sysctl.restore(Record())  # the guard keeps what it changed where a gateway does


@pytest.fixture
def guarded(site: Site, kind: str) -> Iterator[Guarded]:
    with guarding(site) as found:
        yield found


@pytest.fixture
def told(site: Site) -> Iterator[Guarded]:
    """With the iptables of this machine, which is of the kind that tells."""
    with guarding(site) as found:
        yield found


TAKEN = {
    "a table flushed": ("iptables -w -t raw -F",),
    "chains deleted": ("iptables -w -t raw -F; iptables -w -t raw -X",),
    "IPv6": ("ip6tables -w -t mangle -F",),
    "all of a firewall script": (
        "for t in filter nat mangle raw; do iptables -w -t $t -F; iptables -w -t $t -X; done; true",
    ),
    "somebody's set restored": (f"printf '{FOREIGN}' | iptables-restore -w",),
    "a rule in front": ("iptables -w -t mangle -I FORWARD -j ACCEPT",),
    "one rule": ("iptables -w -t mangle -D NFQLB-QUEUE 1",),
}


@pytest.mark.parametrize("taken", TAKEN)
def test_rules_are_back_in_time(guarded: Guarded, taken: str) -> None:
    assert guarded.well
    guarded.run(*TAKEN[taken])
    assert not guarded.well
    begun = time.monotonic()
    assert guarded.serve(IN_TIME, lambda: guarded.well), guarded.said
    assert time.monotonic() - begun < IN_TIME
    assert guarded.serve(IN_TIME, lambda: bool(guarded.said))
    assert guarded.state["present"] is True
    assert guarded.said[0][0] == "warning"
    assert re.search("missing|before our jump", guarded.said[0][1])


def test_what_it_changes_itself_does_not_set_it_off(told: Guarded) -> None:
    told.run("iptables -t raw -F")
    assert told.repaired()
    told.serve(1.0)
    changes = Changes()
    told.serve(3.0)  # more than one periodical look
    assert not changes.read().subjects
    changes.close()
    assert told.state["repairs"] == 1
    assert len(told.said) == 1


def test_it_says_what_was_missing_for_how_long_and_who_did_it(told: Guarded) -> None:
    told.run("iptables -t raw -F PREROUTING; sleep 0.3")
    assert told.repaired()
    ((level, text),) = told.said
    assert level == "warning"
    assert "iptables raw PREROUTING: the jump is missing: -j NFQLB-PREROUTING" in text
    assert re.search(r"for \d+ ms; by iptables", text)
    assert str(told.state["why"]) in text
    assert isinstance(told.state["repaired_at"], float)
    assert abs(told.state["repaired_at"] - time.time()) < 60


def test_whoever_still_runs_is_told_of_by_its_command(told: Guarded) -> None:
    """The name and the number come from the kernel; the rest from /proc, for who is not gone by then."""
    with subprocess.Popen(["iptables-restore"], stdin=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        other.stdin.write(FOREIGN)
        other.stdin.flush()  # it has committed, and waits for more
        assert told.repaired()
        other.stdin.close()
    assert f"iptables-restore (process {other.pid}, user 0, started by" in told.said[0][1]


def test_who_changed_something_else_is_not_blamed(told: Guarded) -> None:
    told.run("iptables -t filter -A FORWARD -s 203.0.113.1 -j DROP; iptables -t raw -F; ip6tables -t raw -L")
    assert told.repaired()
    assert told.serve(IN_TIME, lambda: told.well)
    text = told.said[0][1]
    assert text.count("(process") == 1
    assert "FORWARD" not in text


def test_addresses_are_back_in_time(told: Guarded) -> None:
    told.run("ip address flush dev outside")
    assert told.serve(IN_TIME, lambda: told.well)
    assert told.repaired()
    assert "address 192.0.2.100/32 on outside: missing" in told.said[0][1]
    assert "address 2001:db8::100/128 on outside: missing" in told.said[0][1]
    assert re.search(r"by .*\(process \d+", told.said[0][1])


def test_an_address_that_somebody_else_gives_the_gateway_is_not_taken_over(told: Guarded) -> None:
    told.run(f"ip address del {VIP}/32 dev outside; ip address add {VIP}/24 dev outside")
    told.serve(3.0)
    shown = told.site.run("ip", "-o", "address", "show", "to", VIP)
    assert shown.count(VIP) >= 1
    assert f"{VIP}/24" in shown


def test_settings_are_back_in_time(told: Guarded) -> None:
    told.run("sysctl -qw net.ipv4.conf.outside.forwarding=0")
    assert told.serve(IN_TIME, lambda: told.well)
    assert told.repaired()
    assert "net/ipv4/conf/outside/forwarding is 0, should be 1" in told.said[0][1]
    assert "not known" in told.said[0][1]
    assert [(change.path, change.value) for change in Record().read()] == [
        ("net/ipv4/conf/outside/forwarding", "1")
    ]


def test_who_goes_on_is_not_fought(told: Guarded) -> None:
    """Repairs are counted out, that is said once as an error, and when it is over all is well again."""
    others = subprocess.Popen(["sh", "-c", "while :; do iptables -t raw -F; sleep 0.02; done"])
    try:
        assert told.serve(30.0, lambda: bool(told.state["contested"]))
        begun, count = time.monotonic(), told.state["repairs"]
        told.serve(6.0)
        assert isinstance(count, int)
        assert isinstance(told.state["repairs"], int)
        made = told.state["repairs"] - count
        assert 1 <= made <= 1 + (time.monotonic() - begun) / 3
    finally:
        others.kill()
        others.wait()
    errors = [text for level, text in told.said if level == "error"]
    assert len(errors) == 1
    assert "again and again, by iptables -t raw -F" in errors[0]
    assert len(told.said) <= 13
    assert told.serve(IN_TIME, lambda: told.well and told.state["present"] is True)


def test_at_rest_it_lets_the_gateway_change_what_it_wants(told: Guarded) -> None:
    """A reload takes the old rules out and puts others in; the guard follows, and guards those."""
    other = replace(SIX, virtuals=(replace(SIX.virtuals[0], port=443), SIX.virtuals[1]))
    with told.guard.at_rest():
        rules.apply(other, force=True)
        told.serve(0.5)
        assert rules.verify(other) == []
        told.guard.follow(other)
    told.serve(1.0)
    assert rules.verify(other) == []
    assert told.said == []
    told.run("iptables -t raw -F")
    assert told.serve(IN_TIME, lambda: rules.verify(other) == [])
    assert told.repaired()


def test_what_is_taken_while_it_rests_is_put_back_afterwards(told: Guarded) -> None:
    with told.guard.at_rest():
        told.run("iptables -t raw -F")
        told.serve(0.5)
        assert not told.well
    assert told.serve(IN_TIME, lambda: told.well)


def refuse_rules(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have `iptables-restore` be one, put into a directory, that always fails."""
    restore = directory / "iptables-restore"
    restore.write_text("#!/bin/sh\necho 'iptables-restore: no more room' >&2\nexit 1\n")
    restore.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_what_cannot_be_repaired_is_said_once_and_tried_again(
    told: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken_path:
        refuse_rules(broken_path, tmp_path)
        told.run("iptables -t raw -F")
        assert told.serve(IN_TIME, lambda: told.state["present"] is False)
        told.serve(5.0)
        (said,) = told.said
        assert said[0] == "error"
        assert "no more room" in said[1]
        assert "cannot be repaired" in str(told.state["why"])
    assert told.serve(IN_TIME, lambda: told.state["present"] is True)
    assert told.well


def test_what_is_well_does_not_hide_what_is_not(
    told: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings are looked at, and found well, while rules cannot be repaired."""
    with monkeypatch.context() as broken_path:
        refuse_rules(broken_path, tmp_path)
        told.run("iptables -t raw -F")
        assert told.serve(IN_TIME, lambda: told.state["present"] is False)
        told.run("sysctl -qw net.ipv4.conf.inside.rp_filter=1")
        assert not told.serve(1.0, lambda: told.state["present"] is not False)
    assert told.serve(IN_TIME, lambda: told.state["present"] is True)
    assert told.well


def test_it_never_keeps_its_caller_waiting(
    told: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iptables that hangs, for its lock say, is the child's to wait for."""
    slow = tmp_path / "slow"
    slow.mkdir()
    save = slow / "iptables-save"
    save.write_text("#!/bin/sh\nsleep 3\nexec /usr/sbin/iptables-save\n")
    save.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    told.run("iptables -t raw -F")
    assert told.serve(10.0, lambda: told.well)
    assert told.longest < 0.5


def test_a_queue_that_was_let_go_is_told_of(told: Guarded) -> None:
    told.bound.append(["NFQUEUE 10"])
    assert told.serve(IN_TIME, lambda: bool(told.said))
    assert told.said == [("warning", "NFQUEUE 10 was not bound any more and is again")]


def test_after_its_end_nothing_is_put_back(told: Guarded) -> None:
    told.run("iptables -t raw -F")
    told.serve(0.01)
    told.guard.close()
    rules.remove(told.site.directory)
    told.serve(1.0)
    assert "NFQLB" not in told.site.saved()


def test_an_errand_that_hangs_is_given_up_with_all_it_has_started() -> None:
    selector = selectors.DefaultSelector()
    ends: list[object] = []

    def hang() -> JSON:
        return subprocess.run(["sleep", "60"], check=False).returncode

    errand = Errand(selector, hang, ends.append, 0.3)
    deadline = time.monotonic() + 10
    while not ends and time.monotonic() < deadline:
        for key, mask in selector.select(0.05):
            key.data(mask)
        errand.tick()
    assert "given up" in str(ends[0])
    wait_until(lambda: not group_is_there(errand.pid))


def group_is_there(number: int) -> bool:
    """Whether a process of the group is left, be it one that nobody has buried yet."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


