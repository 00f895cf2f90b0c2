"""Hostile input, a little of it in every run: each target by hypothesis, and by a seed.

`python -m tests.fuzz` has the long forms; README.md here says what they came to.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import oracle
from tests.fuzz.targets import TARGETS, rewriting

STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=300)
_PACKETS = {"replays": 100}  # of a target; the rest:
_MOST = 3000
_ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_gives_way(name: str) -> None:
    """F01, F02, F03, F04, F05, F09: a verdict always, no error, exact bytes, counted; books that balance."""
    dice, packets = random.Random(f"2026 {name}"), 0
    while packets < _PACKETS.get(name, _MOST):
        packets += TARGETS[name](dice.randbytes(int(dice.triangular(8, 4000, 1500))))


@STEADY
@given(name=st.sampled_from(sorted(TARGETS)), data=st.binary(max_size=300))
def test_nothing_gives_way_to_what_hypothesis_thinks_of(name: str, data: bytes) -> None:
    """F01: it tries what is simple, empty and repeated first."""
    TARGETS[name](data)


def test_scapy_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """F05: of what was not damaged, every sum is right afterwards, whoever computes it."""
    asked, by_scapy = [], oracle.check_by_scapy

    def ask(packet: bytes) -> None:
        asked.append(packet)
        by_scapy(packet)

    monkeypatch.setattr(oracle, "check_by_scapy", ask)
    dice, packets = random.Random(7), 0
    while packets < 1000:
        packets += rewriting(dice.randbytes(1000), scapy=True)
    assert len(asked) > 100


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="atheris has no wheels for it")
def test_the_guided_form_begins(tmp_path: Path) -> None:
    """F01: a moment of it, so that it is there when somebody has an hour."""
    words = ["-m", "tests.fuzz", "--runs", "300", "--keep", str(tmp_path), "decoders"]
    done = subprocess.run(
        [sys.executable, *words], cwd=_ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "guided" in done.stdout
    assert "cov: " in done.stderr
