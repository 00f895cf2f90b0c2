"""Whose clients share sticky entries.

Owns `Scope`, under which the entries of `fpa` are kept, and how it follows from a virtual server.
"""

from dataclasses import dataclass

from nfqlb.core.spec import Virtual


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose clients share sticky entries: one virtual server's, or a sticky group's (A8).

    `refreshed` says whether each new connection renews the interval, `active` whether every packet of
    the client's connections does (A6).
    """

    name: str
    grouped: bool
    interval: float
    prefix: int
    refreshed: bool = True
    active: bool = False


def scope_of(virtual: Virtual, *, strict_refresh: bool) -> Scope | None:
    """The scope of a virtual server; None where it is not sticky."""
    if virtual.sticky <= 0:
        return None
    return Scope(
        name=virtual.sticky_group or virtual.name,
        grouped=bool(virtual.sticky_group),
        interval=virtual.sticky,
        prefix=virtual.sticky_mask,
        refreshed=virtual.sticky_refresh != "never" and not strict_refresh,
        active=virtual.sticky_refresh == "activity" and not strict_refresh,
    )
