"""One nfqlb a network namespace, by a lock that ends with its process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace
from nfqlb.netfilter.state import Claim, Kept, owner

HERE = Namespace(4026531840, 7, "boot-1")
THERE = Namespace(4026531841, 8, "boot-1")

HOLD = """
import sys
from pathlib import Path
from nfqlb.netfilter.procfs import Namespace
from nfqlb.netfilter.state import Claim
claim = Claim(Path(sys.argv[1]), Namespace(4026531840, 7, "boot-1"))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_claim_is_refused_with_the_owners_process_id(tmp_path: Path) -> None:
    with (
        Claim(tmp_path, HERE),
        pytest.raises(KernelError, match=f"another nfqlb, process {os.getpid()}, serves"),
    ):
        Claim(tmp_path, HERE)


def test_another_namespace_can_be_claimed_beside_it(tmp_path: Path) -> None:
    with Claim(tmp_path, HERE), Claim(tmp_path, THERE):
        assert owner(tmp_path, THERE) == os.getpid()


def test_a_released_namespace_is_free_and_leaves_no_file(tmp_path: Path) -> None:
    claim = Claim(tmp_path, HERE)
    claim.release()
    claim.release()
    assert owner(tmp_path, HERE) is None
    assert list(tmp_path.iterdir()) == []
    Claim(tmp_path, HERE).release()


def test_f30_without_room_for_the_claim_it_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    """As where /run is full: a file of no length can be made there."""
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); " + HOLD
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "net-4026531840.lock: cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_looking_for_the_owner_does_not_free_the_namespace(tmp_path: Path) -> None:
    with Claim(tmp_path, HERE):
        assert owner(tmp_path, HERE) == os.getpid()
        assert owner(tmp_path, HERE) == os.getpid()


def test_nobody_owns_what_was_never_claimed(tmp_path: Path) -> None:
    assert owner(tmp_path, HERE) is None
    assert owner(tmp_path / "nothing", HERE) is None


def test_a_killed_owner_leaves_a_file_and_no_claim(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert owner(tmp_path, HERE) == process.pid
        with pytest.raises(KernelError, match=f"process {process.pid},"):
            Claim(tmp_path, HERE)
        process.kill()
    assert list(tmp_path.iterdir()) != []
    assert owner(tmp_path, HERE) is None
    Claim(tmp_path, HERE).release()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match=r"file/net-4026531840\.lock: cannot be opened"):
        Claim(tmp_path / "file", HERE)


def test_what_is_kept_is_found_again_and_forgotten(tmp_path: Path) -> None:
    text = 'name = "Käse"\n# the end, without a newline'
    kept = Kept(tmp_path / "run", HERE)
    assert kept.read() is None
    kept.write("longer than what follows: " + text)
    kept.write(text)
    assert kept.file.stat().st_mode & 0o777 == 0o600
    assert Kept(tmp_path / "run", HERE).read() == text
    assert kept.remove() == [f"{kept.file} removed"]
    assert (kept.read(), kept.remove()) == (None, [])
    assert list((tmp_path / "run").iterdir()) == []


def test_what_another_boot_or_namespace_has_kept_counts_as_nothing(tmp_path: Path) -> None:
    Kept(tmp_path, HERE).write("name = 1\n")
    assert Kept(tmp_path, replace(HERE, boot="boot-2")).read() is None
    assert Kept(tmp_path, replace(HERE, cookie=8)).read() is None
    Kept(tmp_path, HERE).file.write_bytes(b"\xff\n")
    assert Kept(tmp_path, HERE).read() is None
