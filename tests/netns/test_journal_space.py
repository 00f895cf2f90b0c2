"""The journal where storage runs out: in a mount namespace with a small tmpfs of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

#: Opens connections, some before and some after storage is used up, and then has the operator say something;
#: tells how many, how many are lost, and how many, and what of the operator's, a successor finds.
PROGRAM = """
import sys
from ipaddress import IPv4Address
from pathlib import Path
from struct import pack

from nfqlb.core.admission import ServerState
from nfqlb.core.connection import Connection
from nfqlb.core.director import Director
from nfqlb.core.segment import SYN, Segment
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.runtime.journal import Journal

directory, before, after = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = Config(
    Gateway(("out",), ("in",)),
    (Real("web1", IPv4Address("10.0.0.11")),),
    (Virtual("web", IPv4Address("192.0.2.100"), (Server("web1", 80),), port=80),),
)
journal = Journal(200_000, directory=directory)
director = Director(config, now=0.0, recorder=journal, keeper=journal)
list(journal.kept())

def connect(number):
    key = pack("!IIHH", 0xC6330000 + number // 60_000, 0xC0000264, 1024 + number % 60_000, 80)
    return director.client_syn(Segment(key, SYN, bytes(8)), 1.0)

made = [connect(number) for number in range(before)]
try:
    with (directory / "filler").open("wb", buffering=0) as filler:
        while after and filler.write(bytes(4096)):
            pass
except OSError:
    pass
made += [connect(number) for number in range(before, before + after)]
served = sum(isinstance(each, Connection) for each in made)
for connection in made[::2]:
    director.table.remove(connection, 2.0)
director.operation.set_real("web1", setting=ServerState.MAINTENANCE, now=3.0)
successor = Journal(200_000, directory=directory)
settings = [kept.setting.shown for kept in successor.kept()]
print(served, journal.unkept, sum(1 for _ in successor.records()), *settings)
"""


def run(directory: Path, size: int, *numbers: int) -> list[int]:
    """Run the program with a tmpfs of so many KiB; what it printed, its log lines checked."""
    mount = f"mount -t tmpfs -o size={size}k,mode=0755 nfqlb-test {directory}"
    command = f'{mount} && exec "$@"'
    program = [sys.executable, "-c", PROGRAM, str(directory), *map(str, numbers)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command, "sh", *program],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *numbers_told, kept = done.stdout.split()
    assert kept == "maintenance", "there is room for what is set"
    served, lost, found = map(int, numbers_told)
    assert done.stderr.count("would not survive the worker") == (lost > 0), done.stderr
    return [served, lost, found]


@pytest.mark.parametrize(
    ("size", "lost"),
    [(1300, 60_000 - 32_768), (4096, 0), (500, 60_000)],
)
def test_small_storage(tmp_path: Path, size: int, lost: int) -> None:
    """R187: no room for a record: the connection is served, counted as lost, said once; nobody dies of it."""
    assert run(tmp_path, size, 60_000, 0) == [60_000, lost, (60_000 - lost) // 2]


def test_storage_that_others_use_up(tmp_path: Path) -> None:
    """R187: what was set aside stays ours, though not a byte of the file system is left."""
    assert run(tmp_path, 2000, 100, 40_000) == [40_100, 40_100 - 32_768, 32_768 // 2]


def test_no_storage_at_all(tmp_path: Path) -> None:
    """R105: where not even the header fits, one line says so."""
    mount = f"mount -t tmpfs -o size=4k nfqlb-test {tmp_path} && head -c 4096 /dev/zero > {tmp_path}/filler"
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), "1", "0"]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{mount}; exec "$@"', "sh", *program],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the journal cannot be opened: No space left on device" in done.stderr.splitlines()[-1]
