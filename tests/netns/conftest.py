"""Tests on the real kernel: each laboratory is made of network namespaces, so they need root."""

import os
from pathlib import Path

import pytest

from tests.netns.both import DATAPATHS, Datapath

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=DATAPATHS)
def datapath(request: pytest.FixtureRequest) -> Datapath:
    """Which datapath a module's laboratory is for: each test runs for both (see `both`)."""
    chosen: Datapath = request.param
    return chosen


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is nothing to test here; `tests/run.sh` refuses to run so."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="needs root, for network namespaces"))
