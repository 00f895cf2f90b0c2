"""The files that a gateway which is gone has left, taken away."""

import socket
from pathlib import Path

import pytest

from nfqlb.netfilter import alone
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace
from nfqlb.netfilter.state import Claim
from nfqlb.runtime import remains
from nfqlb.runtime.estate import Holder
from nfqlb.runtime.journal import Journal

HERE, OTHER = Namespace(4026531840, 7, "boot-1"), Namespace(4026531841, 8, "boot-1")


def left_by(directory: Path, where: Namespace) -> list[Path]:
    """What a killed gateway leaves: its control socket, journal, place and lock."""
    control = directory / f"{where.cookie}.control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
    journal = Journal(10, directory=directory, where=where)
    journal.close()
    place, lock = directory / f"net-{where.inode}.sock", directory / f"net-{where.inode}.lock"
    Holder(place).close()
    lock.write_text("4711\n")
    return [journal.path, place, control, lock]


def clear(directory: Path, where: Namespace = HERE) -> list[str]:
    return remains.clear(directory / f"{where.cookie}.control", directory, where, directory)


def test_all_of_it_goes_and_is_named_and_nobody_else_s(tmp_path: Path) -> None:
    files, others = left_by(tmp_path, HERE), left_by(tmp_path, OTHER)
    assert clear(tmp_path) == [f"{path} removed" for path in files]
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert clear(tmp_path) == []


def test_what_somebody_has_stays(tmp_path: Path) -> None:
    files = left_by(tmp_path, HERE)
    with Claim(tmp_path, HERE), pytest.raises(KernelError, match="another nfqlb"):
        clear(tmp_path)
    assert all(path.exists() for path in files[:3])
    holder = Holder(files[1])
    alone.mark(files[1], 42.0)
    assert clear(tmp_path) == ["a worker without supervisor goes on for another 42 s, with its journal"]
    assert all(path.exists() for path in files[:3])
    holder.close()
    with socket.socket(socket.AF_UNIX) as listener:
        files[2].unlink()
        listener.bind(str(files[2]))
        listener.listen()
        clear(tmp_path)
        assert files[2].exists(), "somebody answers there"


def test_a_file_where_the_socket_would_be_is_left_alone(tmp_path: Path) -> None:
    control = tmp_path / "7.control"
    control.write_text("mine")
    assert clear(tmp_path) == []
    assert control.read_text() == "mine"
