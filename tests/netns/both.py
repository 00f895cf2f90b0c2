"""Both datapaths: laboratories whose gateways run with one of them, so that one test proves a promise twice.

A module's `lab` is a `Bench`, made for the parameter `datapath`; its configurations come from `configuration`
here. What holds in one datapath alone is marked with `only`, which wants the reason.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from nfqlb.demo import appliance
from nfqlb.demo.lab import Lab
from nfqlb.demo.web import serve
from tests.netns.asking import PREFIX, files_of

Datapath = Literal["rewrite", "offload"]
REWRITE: Datapath = "rewrite"
OFFLOAD: Datapath = "offload"
DATAPATHS: tuple[Datapath, ...] = (REWRITE, OFFLOAD)
#: The kernel's own table must have room for them all, or `check --host` warns of it.
ROOM = 100_000


class Bench(Lab):
    """A laboratory for gateways of one datapath; what else it has is `Lab`'s."""

    def __init__(self, datapath: Datapath, **shape: Any) -> None:
        super().__init__(prefix=PREFIX, **shape)
        self.datapath: Datapath = datapath

    def __exit__(self, *raised: Any) -> None:
        """Also take away what killed gateways have left to their next start, which does not come."""
        left = [file for gateway in self.gateways for file in files_of(gateway.namespace)]
        super().__exit__(*raised)
        for file in left:
            Path(file).unlink(missing_ok=True)


@contextmanager
def serving(datapath: Datapath, **shape: Any) -> Iterator[Bench]:
    """A laboratory in which every server serves."""
    with Bench(datapath, **shape) as lab:
        for server in lab.servers:
            serve(lab, server)
        yield lab


def answer_nobody(lab: Lab, sources: str) -> None:
    """Have what is sent to these addresses, which nobody has, go to the last client: it answers nothing."""
    flooder = next(iter(lab.clients[-1].interfaces.values()))
    lab.gateway.run("ip", "route", "add", sources, "via", flooder.address.partition("/")[0])


def configuration(lab: Lab, *virtuals: str, gateway: str = "", reals: dict[str, str] | None = None) -> str:
    """The configuration of `demo.appliance`, with the laboratory's datapath."""
    assert isinstance(lab, Bench)
    keys = f'datapath = "{lab.datapath}"\n{gateway}'
    if lab.datapath == OFFLOAD and "max_connections" not in gateway:
        keys += f"\nmax_connections = {ROOM}"
    return appliance.configuration(lab, *virtuals, gateway=keys, reals=reals)


def offloads(lab: Lab) -> bool:
    """Whether the kernel translates there, so that the worker sees only what opens and ends a connection."""
    assert isinstance(lab, Bench)
    return lab.datapath == OFFLOAD


SAME = "it is over before a packet comes, or has nothing to do with packets"


def only(datapath: Datapath, why: str) -> Callable[[Any], Any]:
    """Let a test run over one datapath alone, and say why."""
    assert why
    return pytest.mark.parametrize("datapath", [datapath], indirect=True, scope="module")
