"""Tests on the real kernel: each laboratory is made of network namespaces, so they need root."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is nothing to test here; `tests/run.sh` refuses to run so."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="needs root, for network namespaces"))
