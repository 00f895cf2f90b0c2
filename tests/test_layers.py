"""Imports point down only, and the lower layers know no clock, no socket and no process.

Walks the syntax trees of the whole package. Nothing is imported for it, so it also sees
imports inside functions and those for type checkers only.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nfqlb"

#: A module may import from its own package and from packages of lower rank.
RANKS = {
    "core": 0,
    "packet": 1,
    "config": 1,
    "replay": 2,
    "netfilter": 2,
    "runtime": 3,
    "demo": 4,
    "service": 4,
    "operator": 5,  # with the demo at the top; its command `demo` starts it
    "__main__": 6,
}
PURE = ("core", "packet", "config", "replay")
#: What a pure package must not import. `importlib` would let anything in unseen.
IMPURE = frozenset(
    {
        "socket", "os", "time", "threading", "logging", "random", "subprocess", "rich",
        "select", "selectors", "signal", "multiprocessing", "asyncio", "secrets", "importlib",
        "netfilterqueue", "pyroute2",
    }
)  # fmt: skip
#: The configuration opens its file; nobody else below the kernel layer knows files.
FILES = {"config": frozenset({"pathlib"})}


FOR_CHECKERS = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"


def breaches(source: str, module: str) -> list[str]:
    """What the source of a module (`nfqlb.core.table`) imports against the rules, with its line."""
    package = module.split(".")[1]
    rank = -1 if package == "__init__" else RANKS.get(package, -1)
    found = []
    if rank < 0 and package != "__init__":
        found.append(f"{module}: the package {package} has no layer")
    for line, target in _imports(ast.parse(source), module):
        top, _, rest = target.partition(".")
        if top == "nfqlb":
            other = rest.partition(".")[0]
            if other != package and RANKS.get(other, -2) >= rank:
                found.append(f"{module}:{line}: {target} is not below {package}")
        elif package in PURE and top in (IMPURE | {"pathlib"}) - FILES.get(package, frozenset()):
            found.append(f"{module}:{line}: {target} in a pure layer")
    return found


def _imports(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "__import__":
            yield node.lineno, "importlib"


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts), path


def test_imports_point_down_only() -> None:
    found = [each for module, path in modules() for each in breaches(path.read_text("utf-8"), module)]
    assert found == []


def test_the_whole_package_is_looked_at() -> None:
    """Every package has a layer, and every layer is there."""
    seen = {module.split(".")[1] for module, _ in modules()} - {"__init__"}
    assert seen == set(RANKS)
    assert len(list(modules())) > 30


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nfqlb.core.table", "import time"),
        ("nfqlb.core.table", "from time import monotonic"),
        ("nfqlb.core.table", "import os.path"),
        ("nfqlb.core.table", "import random as dice"),
        ("nfqlb.core.table", "from pathlib import Path"),
        ("nfqlb.core.schedulers.base", "def later() -> None:\n    import logging"),
        ("nfqlb.core.table", "try:\n    import socket\nexcept ImportError:\n    pass"),
        ("nfqlb.core.table", "clock = __import__('time')"),
        ("nfqlb.core.table", "from importlib import import_module"),
        ("nfqlb.core.table", "from nfqlb.packet.path import PacketPath"),
        ("nfqlb.core.table", "from nfqlb.packet import path"),
        ("nfqlb.core.table", "from nfqlb import runtime"),
        ("nfqlb.core.table", "import nfqlb.runtime.worker"),
        ("nfqlb.core.table", "from ..packet import path"),
        ("nfqlb.core.schedulers.base", "from ...packet.path import PacketPath"),
        ("nfqlb.core.table", FOR_CHECKERS + "    import nfqlb.config.load"),
        ("nfqlb.packet.path", "from nfqlb.config.load import load"),
        ("nfqlb.config.load", "import rich"),
        ("nfqlb.config.load", "import subprocess"),
        ("nfqlb.packet.path", "from nfqlb.netfilter import queue"),
        ("nfqlb.netfilter.rules", "from nfqlb.runtime import worker"),
        ("nfqlb.runtime.worker", "from nfqlb.operator.cli import main"),
        ("nfqlb.runtime.worker", "from nfqlb.demo.lab import Lab"),
        ("nfqlb.demo.demo", "from nfqlb.operator.cli import main"),
        ("nfqlb.shiny.new", "import ast"),
        ("nfqlb.__init__", "from nfqlb.core.director import Director"),
        ("nfqlb.core.__init__", "from ..packet import path"),
    ],
)  # fmt: skip
def test_a_breach_is_found(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nfqlb.core.table", FOR_CHECKERS + "    import nfqlb.core.server"),
        ("nfqlb.core.table", "from . import server"),
        ("nfqlb.core.__init__", "from .director import Director"),
        ("nfqlb.core.table", "from nfqlb.core import server"),
        ("nfqlb.core.table", "from collections import deque"),
        ("nfqlb.config.load", "from pathlib import Path"),
        ("nfqlb.packet.path", "import dpkt\nfrom nfqlb.core.director import Director"),
        ("nfqlb.netfilter.queue", "import os, socket\nfrom nfqlb.packet.path import PacketPath"),
        ("nfqlb.operator.cli", "import rich\nfrom nfqlb.demo import demo\nfrom nfqlb import __version__"),
        ("nfqlb.__main__", "from nfqlb.operator.cli import main"),
    ],
)  # fmt: skip
def test_what_is_allowed_is_not_found(module: str, source: str) -> None:
    assert breaches(source, module) == []


def test_one_import_more_in_a_real_module_is_found() -> None:
    """The check reads the files it claims to read."""
    core = [(module, path) for module, path in modules() if module.startswith("nfqlb.core.")]
    for module, path in core:
        spoiled = path.read_text("utf-8") + "\nimport time\n"
        assert len(breaches(spoiled, module)) == 1
