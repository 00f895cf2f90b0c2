"""From what a running gateway does to what a new configuration says, without cutting a connection.

Owns three steps, all pure. `refusals` lists what cannot change while it runs. `merged` is the configuration
to run next: the new one, and with it whatever of the old one has connections to lose. `settled` lets go of
what has none any more. A real server is known by its address and a virtual server by address, protocol and
port, whatever they are called: so a changed address is another server, and another name is the same one.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import TypeVar

from nfqlb.config.marks import OFFLOAD, LinkMarks, needed_marks
from nfqlb.config.numbers import datapaths, idle_times
from nfqlb.core.spec import Address, Config, Leaving, Numbers, Real, Server, Service, Target, Virtual

Named = TypeVar("Named", Real, Virtual)

Place = tuple[Address, int | None]
"""A real server's address, and its port in a virtual server."""

_FIXED = ("outside", "inside", "queue", "mark_mask", "socket")
_EARLIER = re.compile(r"@\d+\Z")
_BASE = 58  # characters of a name before @ and number: no name has more than 64
#: Idle time-outs that the kernel can have names for.
_TIMES = 62


def refusals(running: Config, wanted: Config, *, room: int) -> list[str]:
    """What in `wanted` needs a restart, or has to wait, one line each; [] where all can be done at once.

    `room` is how many connections the running gateway can have at most.
    """
    found = [
        f"[gateway] {key}: needs a restart"
        for key in _FIXED
        if getattr(running.gateway, key) != getattr(wanted.gateway, key)
    ]
    if wanted.gateway.max_connections > room:
        found.append(f"[gateway] max_connections: more than {room:,} needs a restart")
    found += _datapath_changes(running, wanted)
    if found:
        return found
    config = _joined(running, wanted)
    found += _clashes(config)
    if not found:
        try:
            _numbers(running, config)
        except ValueError:
            message = "has no room for the servers of before and after together"
            found.append(f"[gateway] mark_mask: {message}: wait until more have drained, or restart")
    return found


def _datapath_changes(running: Config, wanted: Config) -> Iterator[str]:
    before = {virtual.service: virtual.datapath for virtual in running.virtuals}
    bound = datapaths(running)
    for virtual in wanted.virtuals:
        was = before.get(virtual.service, virtual.datapath)
        if was != virtual.datapath:
            yield f"virtual server {virtual.name}: datapath: from {was} to {virtual.datapath} needs a restart"
        elif virtual.datapath not in bound:
            yield (
                f'virtual server {virtual.name}: datapath: "{virtual.datapath}" is not in use yet, '
                "which needs a restart"
            )


def _clashes(config: Config) -> Iterator[str]:
    """An address that one side gives up and the other one gets, while it has connections."""
    reals = {real.address: real.name for real in config.reals}
    for virtual in config.virtuals:
        if virtual.address in reals:
            both = f"real server {reals[virtual.address]} and of virtual server {virtual.name}"
            yield f"{virtual.address} cannot be that of {both}: wait until it has drained, or restart"


def merged(running: Config, wanted: Config) -> Config:
    """The configuration to run next: `wanted`, and what of `running` may still have connections.

    What drains keeps its name where that is free, else it is called NAME@1, @2 ... With the numbers that the
    kernel knows links by; raises ValueError where they do not fit.
    """
    config = _joined(running, wanted)
    return replace(config, numbers=_numbers(running, config))


def _joined(running: Config, wanted: Config) -> Config:
    """The same without numbers."""
    known = {real.address for real in wanted.reals}
    left = _left(running, wanted)
    addresses = {address for places in left.values() for address, _ in places} - known
    reals = _renamed(
        [real for real in running.reals if real.address in addresses], {real.name for real in wanted.reals}
    )
    services = {virtual.service for virtual in wanted.virtuals}
    virtuals = _renamed(
        [each for each in running.virtuals if each.service in left and each.service not in services],
        {virtual.name for virtual in wanted.virtuals},
    )
    everybody = (*wanted.reals, *(replace(real, backup="") for real in reals))
    destinations = (*wanted.virtuals, *map(_without_servers, virtuals))
    names = {real.address: real.name for real in everybody}
    leaving = Leaving(
        frozenset(real.name for real in reals),
        frozenset(virtual.name for virtual in virtuals),
        tuple(
            (virtual.name, Server(names[address], port))
            for virtual in destinations
            for address, port in left.get(virtual.service, ())
        ),
    )
    return replace(wanted, reals=everybody, virtuals=destinations, leaving=leaving, numbers=Numbers())


def settled(running: Config, remaining: Collection[tuple[str, Server]]) -> Config:
    """`running` without what has drained: of the places that leave, only `remaining` have connections."""
    held = set(remaining)
    places = tuple(each for each in running.leaving.places if each in held)
    virtuals = frozenset(name for name, _ in places) & running.leaving.virtuals
    reals = frozenset(place.real for _, place in places) & running.leaving.reals
    gone, empty = running.leaving.reals - reals, running.leaving.virtuals - virtuals
    config = replace(
        running,
        reals=tuple(real for real in running.reals if real.name not in gone),
        virtuals=tuple(virtual for virtual in running.virtuals if virtual.name not in empty),
        leaving=Leaving(reals, virtuals, places),
    )
    return replace(config, numbers=replace(running.numbers, marks=_marks(config)))


def without_leftovers(config: Config) -> Config:
    """What the file said that `config` came from."""
    gone, reals = config.leaving.virtuals, config.leaving.reals
    return replace(
        config,
        reals=tuple(real for real in config.reals if real.name not in reals),
        virtuals=tuple(virtual for virtual in config.virtuals if virtual.name not in gone),
        leaving=Leaving(),
        numbers=Numbers(),
    )


def _left(running: Config, wanted: Config) -> dict[Service, list[Place]]:
    """The places that have connections, perhaps, and are not wanted any more, by what clients send to."""
    after = _places(wanted)
    left = {
        service: [place for place in places if place not in after.get(service, ())]
        for service, places in _places(running).items()
    }
    return {service: places for service, places in left.items() if places}


def _places(config: Config) -> dict[Service, dict[Place, None]]:
    """The places of every virtual server, each once and in their order."""
    addresses = {real.name: real.address for real in config.reals}
    return {
        virtual.service: dict.fromkeys((addresses[each.real], each.port) for each in config.places(virtual))
        for virtual in config.virtuals
    }


def _without_servers(virtual: Virtual) -> Virtual:
    """A virtual server that takes no new connections: nobody is bound to a server by it either."""
    return replace(virtual, servers=(), backup="", sticky=0.0, sticky_group="")


def _renamed(leaving: Iterable[Named], taken: Collection[str]) -> list[Named]:
    """Those who are leaving, under names that nobody else has."""
    everybody: list[Named] = list(leaving)
    used = {*taken, *(one.name for one in everybody)}
    found: list[Named] = []
    for one in everybody:
        name = one.name
        if name in taken:
            base = _EARLIER.sub("", name)[:_BASE]
            name = next(name for number in count(1) if (name := f"{base}@{number}") not in used)
            used.add(name)
        found.append(replace(one, name=name))
    return found


def _numbers(running: Config, config: Config) -> Numbers:
    """The numbers of `running`, and more of them for what is new in `config`."""
    times = tuple(idle_times(replace(config, numbers=Numbers(idle=tuple(idle_times(running))))))
    if len(times) > _TIMES:  # connections of before fall back to the machine's own
        times = tuple(idle_times(config))
    numbers = Numbers(tuple(datapaths(running)), _marks(running), times)
    return replace(numbers, marks=_marks(replace(config, numbers=numbers), everything=True))


def _marks(config: Config, *, everything: bool = False) -> tuple[tuple[Target, int], ...]:
    if OFFLOAD not in datapaths(config):
        return ()
    return tuple(LinkMarks(config).marks.items()) if everything else needed_marks(config)
