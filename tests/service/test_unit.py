"""The unit as systemd reads it: without a complaint, with what the README says of its exposure."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nfqlb.service.install import PLACES, Installation

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed unit; what it starts is there, as systemd wants to see."""
    root = tmp_path_factory.mktemp("root")
    list(Installation(Path(sys.executable), root).install())
    return root / PLACES["nfqlb.service"].relative_to("/")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def test_systemd_has_nothing_to_complain_of(unit: Path) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_unit_would_be_found(unit: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "nfqlb.service"
    wrong.write_text(unit.read_text().replace("Type=notify", "Type=telepathy"))
    assert "telepathy" in analyze("verify", "--man=no", "--recursive-errors=no", str(wrong)).stderr


def test_its_pages_are_those_that_are_installed(unit: Path) -> None:
    (line,) = re.findall(r"^Documentation=(.*)$", unit.read_text(), flags=re.MULTILINE)
    pages = {f"man:{name[:-2]}({name[-1]})" for name in PLACES if name[-2:] in (".5", ".8")}
    assert set(line.split()) == pages


def test_its_exposure_is_the_one_in_the_readme(unit: Path) -> None:
    """Measured by systemd itself, whose versions differ by a tenth or two."""
    done = analyze("security", "--offline=yes", "--json=short", str(unit))
    rows = {row["json_field"]: row for row in json.loads(done.stdout)}
    assert rows["CapabilityBoundingSet_CAP_SYS_ADMIN"]["set"] is True
    text = analyze("security", "--offline=yes", str(unit)).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    said = re.search(r"systemd-analyze security`[^.]*?([0-9]\.[0-9])", README.read_text(encoding="utf-8"))
    assert found
    assert said
    assert float(found[1]) == pytest.approx(float(said[1]), abs=0.2)
