"""Tests on the real kernel: each laboratory is made of network namespaces, so they need root."""

import os
import re
from pathlib import Path

import pytest
from pyroute2 import netns

from tests.netns.both import DATAPATHS, Datapath

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=DATAPATHS)
def datapath(request: pytest.FixtureRequest) -> Datapath:
    """Which datapath a module's laboratory is for: each test runs for both (see `both`)."""
    chosen: Datapath = request.param
    return chosen


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    """Remove the sites' namespaces (`nk-PID-...`) that a killed run has left; laboratories have `sweep`."""
    if os.geteuid() == 0:
        for name in netns.listnetns():
            owner = re.match(r"nk-(\d+)-", name)
            if owner and not Path(f"/proc/{owner[1]}").exists():
                netns.remove(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is nothing to test here; `tests/run.sh` refuses to run so."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="needs root, for network namespaces"))
