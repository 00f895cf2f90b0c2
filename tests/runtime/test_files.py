"""Too few files to be opened: raised where that may be, else refused before anything is touched."""

import resource
import subprocess
import sys

import pytest

from nfqlb.runtime.files import NEEDED

PROGRAM = "from nfqlb.runtime.files import have_enough; have_enough(); import resource; " + (
    "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
)


def limited(usual: int, most: int) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))

    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("limits", "after"),
    [((1000, 1024), "1000 1024"), ((64, 1024), f"{NEEDED} 1024"), ((NEEDED, NEEDED), f"{NEEDED} {NEEDED}")],
)
def test_the_limit_is_raised_as_far_as_it_is_needed(limits: tuple[int, int], after: str) -> None:
    assert limited(*limits).stdout.strip() == after


def test_a_limit_that_cannot_be_raised_is_refused_with_what_to_do() -> None:
    done = limited(32, 40)
    assert done.returncode == 1
    assert f"this process may have 40 files open, nfqlb needs {NEEDED}: raise the limit" in done.stderr
