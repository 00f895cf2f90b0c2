"""Changed settings: recorded first, put back by whoever comes next. A directory plays /proc/sys."""

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace
from nfqlb.netfilter.state import Change, Record
from nfqlb.netfilter.sysctl import TRACKED, forwarding, renamed, restore, switch, tracking

HERE = Namespace(4026531840, 7, "boot-1")
OUTSIDE, INSIDE = "net/ipv4/conf/eth0/forwarding", "net/ipv4/conf/eth1.5/forwarding"


class Machine:
    """A tree of settings and a directory for records."""

    def __init__(self, place: Path) -> None:
        self.root = place / "sys"
        self.directory = place / "run"
        self.record = Record(self.directory, HERE)
        for path in (OUTSIDE, INSIDE):
            self.put(path, "0")

    def put(self, path: str, value: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")

    def get(self, path: str) -> str:
        return (self.root / path).read_text().strip()

    def files(self) -> list[str]:
        return sorted(file.name for file in self.directory.glob("*")) if self.directory.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def config() -> Config:
    real = Real("web1", ip_address("10.0.0.1"))
    virtual = Virtual("web", ip_address("192.0.2.1"), (Server("web1", 80),), port=80)
    return Config(Gateway(("eth0",), ("eth1.5", "eth0")), (real,), (virtual,))


def test_forwarding_is_wanted_on_each_interface_once() -> None:
    assert forwarding(config()) == {OUTSIDE: "1", INSIDE: "1"}


def test_ipv6_forwarding_is_left_to_the_administrator() -> None:
    six = replace(config().virtuals[0], address=ip_address("2001:db8::1"))
    assert forwarding(replace(config(), virtuals=(six,))) == {}


def test_what_is_switched_on_is_put_back(machine: Machine) -> None:
    machine.put(INSIDE, "1")
    assert switch({OUTSIDE: "1", INSIDE: "1"}, machine.record, machine.root) == [f"{OUTSIDE} = 1"]
    assert machine.get(OUTSIDE) == "1"
    assert restore(machine.record, machine.root) == [f"{OUTSIDE} = 0"]
    assert (machine.get(OUTSIDE), machine.get(INSIDE)) == ("0", "1")
    assert machine.files() == []


def test_a_start_after_a_crash_keeps_the_value_from_before_the_crash(machine: Machine) -> None:
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    assert switch({OUTSIDE: "1"}, Record(machine.directory, HERE), machine.root) == []
    assert restore(Record(machine.directory, HERE), machine.root) == [f"{OUTSIDE} = 0"]


def test_the_next_start_puts_back_what_it_does_not_want_itself(machine: Machine) -> None:
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    assert switch({INSIDE: "1"}, machine.record, machine.root) == [f"{OUTSIDE} = 0", f"{INSIDE} = 1"]
    assert machine.record.read() == [Change(INSIDE, "0", "1")]


def test_a_value_that_was_undone_behind_our_back_is_set_again_by_the_next_start(machine: Machine) -> None:
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    machine.put(OUTSIDE, "0")
    assert switch({OUTSIDE: "1"}, machine.record, machine.root) == [f"{OUTSIDE} = 1"]


def test_a_value_that_somebody_changed_since_is_left_as_it_is(machine: Machine) -> None:
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    machine.put(OUTSIDE, "2")
    assert restore(machine.record, machine.root) == []
    assert machine.get(OUTSIDE) == "2"


def test_an_interface_that_is_gone_is_passed_over(machine: Machine) -> None:
    switch({OUTSIDE: "1", INSIDE: "1"}, machine.record, machine.root)
    (machine.root / INSIDE).unlink()
    assert restore(machine.record, machine.root) == [f"{OUTSIDE} = 0"]
    assert machine.files() == []


def test_f20_an_interface_that_is_called_otherwise_gets_its_value_back(machine: Machine) -> None:
    switch({OUTSIDE: "1", INSIDE: "1"}, machine.record, machine.root)
    other = "net/ipv4/conf/wan0/forwarding"
    (machine.root / other).parent.mkdir(parents=True)
    (machine.root / OUTSIDE).rename(machine.root / other)
    renamed({"eth0": "wan0"}, machine.record)
    assert restore(machine.record, machine.root) == [f"{INSIDE} = 0", f"{other} = 0"]


def test_a_setting_that_cannot_be_read_stops_before_anything_is_changed(machine: Machine) -> None:
    (machine.root / INSIDE).unlink()
    with pytest.raises(KernelError, match=r"eth1\.5/forwarding: cannot be read"):
        switch({OUTSIDE: "1", INSIDE: "1"}, machine.record, machine.root)
    assert machine.get(OUTSIDE) == "0"
    assert machine.files() == []


def test_the_record_is_there_before_the_change(machine: Machine) -> None:
    """The second setting cannot be written: the first is changed by then, and can be put back."""
    (machine.root / INSIDE).unlink()
    (machine.root / INSIDE).symlink_to("/proc/sys/kernel/ostype")  # read-only, even for root
    with pytest.raises(KernelError, match=r"eth1\.5/forwarding: cannot be set to 1"):
        switch({OUTSIDE: "1", INSIDE: "1"}, machine.record, machine.root)
    assert machine.get(OUTSIDE) == "1"
    assert restore(machine.record, machine.root) == [f"{OUTSIDE} = 0"]


def test_f30_what_is_recorded_already_needs_no_room_to_be_set_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody undoes it while storage is used up."""

    def full(_changes: object) -> None:
        raise KernelError("cannot be written: No space left on device")

    switch({OUTSIDE: "1"}, machine.record, machine.root)
    machine.put(OUTSIDE, "0")
    monkeypatch.setattr(machine.record, "write", full)
    assert switch({OUTSIDE: "1"}, machine.record, machine.root) == [f"{OUTSIDE} = 1"]
    with pytest.raises(KernelError, match="No space left"):
        switch({OUTSIDE: "1", INSIDE: "1"}, machine.record, machine.root)
    assert machine.get(INSIDE) == "0"


def test_a_record_is_for_root_alone(machine: Machine) -> None:
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    (file,) = machine.directory.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("where", [Namespace(HERE.inode, 8, "boot-1"), Namespace(HERE.inode, 7, "boot-2")])
def test_a_record_of_another_namespace_with_our_number_is_none_of_ours(
    machine: Machine, where: Namespace
) -> None:
    """The numbers of namespaces are given out again, and after a boot all values are new anyway."""
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    assert restore(Record(machine.directory, where), machine.root) == []
    assert machine.get(OUTSIDE) == "1"
    assert machine.files() == []


def test_namespaces_have_records_of_their_own(machine: Machine) -> None:
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    other = Record(machine.directory, Namespace(4026531999, 9, "boot-1"))
    assert restore(other, machine.root) == []
    assert machine.get(OUTSIDE) == "1"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"changes": 1}', '{"changes": [{"path": "x"}]}'])
def test_a_file_that_is_no_record_is_named_and_left(machine: Machine, text: str) -> None:
    machine.directory.mkdir()
    file = machine.directory / f"net-{HERE.inode}.json"
    file.write_text(text)
    with pytest.raises(KernelError, match=r"net-4026531840\.json: not a record of nfqlb"):
        restore(machine.record, machine.root)
    assert file.read_text() == text


def test_a_record_says_what_was_changed(machine: Machine) -> None:
    switch({OUTSIDE: "1"}, machine.record, machine.root)
    (file,) = machine.directory.iterdir()
    assert json.loads(file.read_text()) == {
        "cookie": 7,
        "boot": "boot-1",
        "changes": [{"path": OUTSIDE, "before": "0", "value": "1"}],
    }


# ---- Connection tracking, which datapath offload relies on


def offloaded(limit: int) -> Config:
    base = config()
    gateway = replace(base.gateway, max_connections=limit)
    return replace(base, gateway=gateway, virtuals=(replace(base.virtuals[0], datapath="offload"),))


def test_the_kernels_table_is_given_room_and_put_back(machine: Machine) -> None:
    machine.put(TRACKED, "262144")
    wanted = tracking(offloaded(1_000_000), machine.root)
    assert wanted == {TRACKED: "1250000"}
    switch(wanted, machine.record, machine.root)
    assert machine.get(TRACKED) == "1250000"
    # a start after a crash wants the same, and still knows what stood there before
    switch(tracking(offloaded(1_000_000), machine.root), machine.record, machine.root)
    restore(machine.record, machine.root)
    assert machine.get(TRACKED) == "262144"


@pytest.mark.parametrize("current", ["2000000", "0"])
def test_room_that_is_there_already_is_left_alone(machine: Machine, current: str) -> None:
    """0 stands for no limit."""
    machine.put(TRACKED, current)
    assert switch(tracking(offloaded(1_000_000), machine.root), machine.record, machine.root) == []
    assert machine.get(TRACKED) == current
    assert machine.files() == []


def test_a_limit_that_cannot_be_set_here_is_not_wanted(machine: Machine) -> None:
    """Inside of a container it is read-only; and without conntrack there is none."""
    assert tracking(offloaded(1_000_000), machine.root) == {}
    machine.put(TRACKED, "262144")
    (machine.root / TRACKED).chmod(0o444)
    assert tracking(offloaded(1_000_000), machine.root) == {}


def test_datapath_rewrite_needs_no_such_room(machine: Machine) -> None:
    machine.put(TRACKED, "262144")
    assert tracking(config(), machine.root) == {}
