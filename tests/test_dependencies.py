"""What nfqlb needs of others is in `dependencies.toml`: all of it, with its versions and licences.

Compared with setup.cfg and pyproject.toml, with the packages that the scripts install, with what the sources
import, and with the metadata of what is installed here.
"""

import ast
import configparser
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LISTED: dict[str, Any] = tomllib.loads((ROOT / "dependencies.toml").read_text(encoding="utf-8"))
PYTHON: dict[str, Any] = {canonicalize_name(name): entry for name, entry in LISTED["python"].items()}
DEBIAN = LISTED["debian"]
SCRIPTS = (
    "examples/setup.sh", "examples/demo.sh", "examples/pictures.sh", "tests/run.sh",
    "tests/bench/run.sh", "tests/soak/run.sh",
)  # fmt: skip
APPROVED = "Classifier: License :: OSI Approved"
#: How licences are called where their identifier is not used.
CALLED = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "Python Software Foundation License": "PSF-2.0",
}
#: What is in Debian's copyright file of a package under such a licence.
COPYRIGHT = {
    "GPL-2.0-only": r"^License: GPL-2\b",
    "GPL-2.0-or-later": r"^License: GPL-2\+|common-licenses/GPL-2\b|either version 2 of the License, or",
    "LGPL-2.1-or-later": r"LGPL-2\.1\b",
    "PSF-2.0": r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
    "MPL-2.0": r"^License: MPL-2\.0\b",
    "BSD-2-Clause": r"^License: BSD-2-clause",
    "BSD-3-Clause": r"^License: BSD-3-clause|names? .*may (not )?be used to endorse|specific prior written",
    "Apache-2.0": r"^License: Apache-2\.0",
    "ISC": r"THE SOFTWARE IS PROVIDED \"AS IS\" AND THE AUTHOR DISCLAIMS ALL WARRANTIES",
    "curl": r"^License: curl",
    "Zsh": r"^License: Zsh",
}


def requirements() -> Iterator[tuple[str, Requirement]]:
    """What setup.cfg and pyproject.toml want, each with its use."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    lines = {
        "run": setup["options"]["install_requires"].split("\n"),
        "test": "\n".join(setup["options.extras_require"].values()).split("\n"),
        "build": system["requires"],
    }
    for use, wanted in lines.items():
        yield from ((use, Requirement(line)) for line in wanted if line)


def needed(uses: set[str]) -> dict[str, set[str]]:
    """Everything that is needed here for this, each with those that need it; "" for ourselves."""
    seen: dict[str, set[str]] = {}
    waiting = [("", requirement, frozenset[str]()) for use, requirement in requirements() if use in uses]
    while waiting:
        user, requirement, extras = waiting.pop()
        if not _applies(requirement.marker, extras):
            continue
        name = canonicalize_name(requirement.name)
        if name not in seen:
            further = (Requirement(text) for text in metadata.distribution(name).requires or ())
            waiting += [(name, each, frozenset(requirement.extras)) for each in further]
        seen.setdefault(name, set()).add(user)
    return seen


def _applies(marker: Marker | None, extras: frozenset[str]) -> bool:
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def licence(distribution: metadata.Distribution) -> str:
    """The licence that a distribution says it has, in words of SPDX as far as they are known here."""
    about = distribution.metadata
    if expression := about.get_all("License-Expression"):
        return str(expression[0])
    prefix = f"{APPROVED.partition(': ')[2]} :: "
    names = [text for text in about.get_all("Classifier") or () if text.startswith(prefix)]
    names = [text.removeprefix(prefix) for text in names] or (about.get_all("License") or [""])[:1]
    if names == [""]:
        texts = (file.read_text() for file in distribution.files or () if "licenses/" in str(file))
        names = [next((text.strip().partition("\n")[0].strip() for text in texts), "")]
    return " AND ".join(CALLED.get(name, name) for name in names)


def packages_of_scripts(texts: dict[str, str]) -> set[str]:
    """The Debian packages that scripts install: the words of install_packages, and lists in variables."""
    found: set[str] = set()
    for text in texts.values():
        text = text.replace("\\\n", " ")
        lists = re.findall(r"^install_packages (.*)$", text, re.MULTILINE)
        lists += re.findall(r'^[a-z_]+_packages="(.*)"$', text, re.MULTILINE)
        found |= {word for words in lists for word in words.split() if not word.startswith("$")}
    return found


def imported(directory: str) -> Iterator[tuple[str, str]]:
    """Every module that is neither ours nor Python's own and is imported, with a file that does so."""
    for path in (ROOT / directory).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names | {"nfqlb", "tests"}:
                    yield top, str(path.relative_to(ROOT))


def accepted(use: str) -> set[str]:
    """The licences that something of this use may have."""
    return set(LISTED["accepted"]["run"]) | (set(LISTED["accepted"]["test"]) if use == "test" else set())


def test_what_is_declared_is_what_is_listed() -> None:
    listed = {
        name: (entry["use"], SpecifierSet(entry["versions"]))
        for name, entry in PYTHON.items()
        if "by" not in entry
    }
    assert listed == {canonicalize_name(each.name): (use, each.specifier) for use, each in requirements()}


def test_everything_that_comes_along_is_listed() -> None:
    found = needed({"run", "test"})
    assert sorted(found.keys() - PYTHON.keys()) == []
    for name, users in found.items():
        assert PYTHON[name].get("by", "") in users, f"{name} is there for {users}"
    assert {name for name in needed({"run"}) if PYTHON[name]["use"] != "run"} == set()


@pytest.mark.parametrize("name", sorted(PYTHON))
def test_python_licences(name: str) -> None:
    entry = PYTHON[name]
    assert entry["licence"] in accepted(entry["use"])
    assert "by" in entry or entry["why"]
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert licence(distribution) == entry["licence"]


def test_what_the_scripts_install_is_what_is_listed() -> None:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in SCRIPTS}
    assert packages_of_scripts(texts) == set(DEBIAN)


@pytest.mark.parametrize("name", sorted(DEBIAN))
def test_debian_licences(name: str) -> None:
    entry = DEBIAN[name]
    assert entry["licence"] in LISTED["accepted"]["debian"]
    assert entry["use"] in ("run", "build", "test")
    assert entry["why"]
    said = Path(f"/usr/share/doc/{name}/copyright")
    if not said.is_file():
        pytest.skip("not installed")
    text = said.read_text(encoding="utf-8", errors="replace")
    assert re.search(COPYRIGHT[entry["licence"]], text, re.MULTILINE)
    if entry["versions"]:
        relation, wanted = entry["versions"].split()
        query = ["dpkg-query", "-W", "-f", "${Version}", name]
        version = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        compare = ["dpkg", "--compare-versions", version, relation, wanted]
        assert subprocess.run(compare, check=False).returncode == 0


@pytest.mark.parametrize(("directory", "uses"), [("nfqlb", {"run"}), ("tests", {"run", "test"})])
def test_what_is_imported_is_declared(directory: str, uses: set[str]) -> None:
    """And not merely there because something else has brought it."""
    owners = metadata.packages_distributions()
    direct: set[str] = {name for name, entry in PYTHON.items() if entry["use"] in uses and "by" not in entry}
    for top, path in imported(directory):
        owned: set[str] = {canonicalize_name(name) for name in owners.get(top, ())} or {top}
        assert owned & direct, f"{path} imports {top}, which {owned} brings"


def test_a_package_that_is_not_listed_is_found() -> None:
    script = 'x_packages="gcc make"\ninstall_packages $x_packages curl \\\n    rsh-client # no comment\n'
    assert packages_of_scripts({"": script}) >= {"gcc", "make", "curl", "rsh-client"}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (f"License-Expression: AGPL-3.0-only\n{APPROVED} :: MIT License", "AGPL-3.0-only"),
        (f"License: whatever\n{APPROVED} :: MIT License", "MIT"),
        ("License: Beerware", "Beerware"),
        ("Summary: no word of it", ""),
    ],
)
def test_what_metadata_say_is_understood(tmp_path: Path, lines: str, expected: str) -> None:
    directory = tmp_path / "thing-1.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(f"Metadata-Version: 2.4\nName: thing\nVersion: 1\n{lines}\n")
    found = licence(metadata.PathDistribution(directory))
    assert found == expected
    assert (found in accepted("run")) == (expected == "MIT")
