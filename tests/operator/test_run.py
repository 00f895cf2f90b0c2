"""`nfqlb run` where it cannot start: what it says, in the style that the log is read in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nfqlb


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "nfqlb.toml"
    path.write_text("[gateway]\ncolour = 1\n", encoding="utf-8")
    return path


def run(*words: str) -> tuple[int, str]:
    """The exit status and what was said on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(Path(nfqlb.__file__).parents[1])}
    command = [sys.executable, "-m", "nfqlb", "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_wrong_configuration_is_told_to_people(wrong: Path) -> None:
    status, said = run("-c", str(wrong))
    assert status == 78
    assert f"{wrong}:2: error:" in said


def test_a_wrong_configuration_is_told_to_machines(wrong: Path) -> None:
    status, said = run("-c", str(wrong), "--log", "json")
    rows = [json.loads(line) for line in said.splitlines()]
    assert status == 78
    assert {row["level"] for row in rows} == {"error"}
    assert any(row["message"].startswith(f"{wrong}:2: error:") for row in rows)


def test_a_wrong_configuration_is_told_to_the_journal(wrong: Path) -> None:
    status, said = run("-c", str(wrong), "--log", "journal")
    assert status == 78
    assert all(line.startswith("<3>") for line in said.splitlines())


def test_a_style_that_does_not_exist_is_wrong_usage(wrong: Path) -> None:
    status, said = run("-c", str(wrong), "--log", "xml")
    assert status == 2
    assert "xml" in said
