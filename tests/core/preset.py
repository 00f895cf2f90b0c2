"""A virtual server in a given situation, without connections having to be made for it."""

from collections.abc import Mapping

from nfqlb.core import spec
from nfqlb.core.server import Link, RealServer, VirtualServer
from tests.core.scenario import address_of, virtual


def preset(
    scheduler: str,
    loads: Mapping[str, int],
    weights: Mapping[str, float] | None = None,
    *,
    unanswered: Mapping[str, int] | None = None,
    strict: bool = False,
) -> VirtualServer:
    """A virtual server whose real servers have so many connections, and so many unanswered SYNs."""
    made = {
        name: RealServer(
            spec.Real(name, address_of(name), weight=(weights or {}).get(name, 1)),
            0.0,
            strict_syn_limit=strict,
        )
        for name in loads
    }
    result = VirtualServer(virtual("web", loads, scheduler=scheduler), made)
    for name, load in loads.items():
        made[name].connections = load
        made[name].unanswered = (unanswered or {}).get(name, 0)
        made[name].changed(0.0)
    return result


def name_of(link: Link | None) -> str:
    """The real server's name, nothing for no link."""
    return link.real.spec.name if link else ""


def set_weight(virtual_server: VirtualServer, name: str, weight: float) -> None:
    """Another weight while it runs; 0 makes it unavailable."""
    server = next(link.real for link in virtual_server.links if link.real.spec.name == name)
    server.weight = weight
    server.changed(0.0)
