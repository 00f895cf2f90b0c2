"""What must hold between the keys and tables of a configuration.

Owns the rules that no single value can break: names resolve, nothing stands twice, nothing
overlaps. Each check takes a `Draft` and yields problems; a key that was refused already is
left out of the comparison, so that one mistake is reported once.
"""

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address

from nfqlb.config.draft import Draft, Entry
from nfqlb.config.model import RealTable, VirtualTable
from nfqlb.config.report import KeyPath, Problem, did_you_mean, show
from nfqlb.config.values import LOOPBACK, NO_SERVER, endpoint_of
from nfqlb.core.response import FASTEST_RESPONSE
from nfqlb.core.spec import Address

Check = Callable[[Draft], Iterator[Problem]]

PREFIX_BITS: Mapping[int, int] = {4: 32, 6: 128}
"""The length of a full prefix by IP version: the mask that keeps single clients apart."""


def check_all(draft: Draft) -> Iterator[Problem]:
    """Every problem between the values of `draft`."""
    for check in _CHECKS:
        yield from check(draft)


def _interfaces(draft: Draft) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for side in ("outside", "inside"):
        if not draft.gateway.good(side):
            continue
        names: list[str] = getattr(draft.gateway.values, side)
        for index, name in enumerate(names):
            path: KeyPath = ("gateway", side, index)
            if seen.get(name) == side:
                yield Problem(path, f"{show(name)} stands here twice")
            elif name in seen:
                hint = "clients and real servers need an interface each"
                yield Problem(path, f"{show(name)} is the outside interface already", hint)
            seen.setdefault(name, side)


def _real_names(draft: Draft) -> Iterator[Problem]:
    yield from _unique_names(draft.reals, "real server")


def _virtual_names(draft: Draft) -> Iterator[Problem]:
    yield from _unique_names(draft.virtuals, "virtual server")


def _unique_names(
    entries: list[Entry[RealTable]] | list[Entry[VirtualTable]], what: str
) -> Iterator[Problem]:
    seen: set[str] = set()
    for entry in entries:
        name = entry.values.name
        if entry.good("name") and name in seen:
            yield Problem((*entry.path, "name"), f"there is another {what} {show(name)} further up")
        seen.add(name)


def _real_addresses(draft: Draft) -> Iterator[Problem]:
    owners: dict[Address, str] = {}
    for real in draft.reals:
        address = real.values.address
        if address is None:
            continue
        if address in owners:
            message = f"{address} is {owners[address]}'s address already"
            hint = 'one [[real]] a machine; its services differ by port: servers = ["name:8080"]'
            yield Problem((*real.path, "address"), message, hint)
        owners.setdefault(address, _label(real))
    for virtual in draft.virtuals:
        address = virtual.values.address
        if address is not None and address in owners:
            message = f"{address} is the address of the real server {owners[address]}"
            hint = "clients reach a virtual server under an address of its own"
            yield Problem((*virtual.path, "address"), message, hint)


def _label(entry: Entry[RealTable] | Entry[VirtualTable]) -> str:
    """The name in a message; where it was refused, which table of its kind it is."""
    table, *index = entry.path
    return entry.values.name or f"[[{table}]] number {int(index[0]) + 1 if index else 1}"


def _overlaps(draft: Draft) -> Iterator[Problem]:
    """Two virtual servers that would both answer the same packet."""
    seen: dict[tuple[Address, str], dict[int | None, str]] = {}
    for virtual in draft.virtuals:
        values = virtual.values
        if values.address is None or not (virtual.good("port") and virtual.good("protocol")):
            continue
        path = (*virtual.path, "port")
        whole = f"{values.protocol} {values.address}"
        owners = seen.setdefault((values.address, values.protocol), {})
        if values.port in owners:
            which = "every port" if values.port is None else f"port {values.port}"
            yield Problem(path, f"{which} of {whole} is {owners[values.port]}'s already")
        elif None in owners:
            yield Problem(path, f"every port of {whole} is {owners[None]}'s already")
        elif values.port is None and owners:
            taken = ", ".join(f"{port} ({name})" for port, name in owners.items())
            yield Problem(path, f"not every port of {whole} is free: {taken}")
        owners.setdefault(values.port, _label(virtual))


def _every_port(draft: Draft) -> Iterator[Problem]:
    """With every port, each port is the same on the server (A21)."""
    for virtual in draft.virtuals:
        if virtual.values.port is not None or not virtual.good("port"):
            continue
        for index, server in enumerate(virtual.values.servers):
            if server.port is not None:
                message = f"{show(f'{server.real}:{server.port}')} has a port, the virtual server has none"
                hint = f'give the virtual server a port, or write just "{server.real}"'
                yield Problem((*virtual.path, "servers", index), message, hint)


def _response_times(draft: Draft) -> Iterator[Problem]:
    """Only TCP tells what is a response."""
    for virtual in draft.virtuals:
        values = virtual.values
        for key in ("scheduler", "shadow"):
            if values.protocol == "udp" and getattr(values, key) == FASTEST_RESPONSE:
                message = f"{show(FASTEST_RESPONSE)} goes by response times, which UDP does not tell"
                yield Problem((*virtual.path, key), message, "any other scheduler will do")


def _syn_guards(draft: Draft) -> Iterator[Problem]:
    """Only TCP has connections that are half-open."""
    for virtual in draft.virtuals:
        for key in ("synguard", "synguard_rate"):
            if virtual.values.protocol == "udp" and getattr(virtual.values, key):
                message = f"{key} guards against floods of SYNs, which UDP has not"
                yield Problem((*virtual.path, key), message, "leave it out here")


def _metrics(draft: Draft) -> Iterator[Problem]:
    """Metrics are asked for at an address of this machine, which has no server's and no service's."""
    if not draft.gateway.good("metrics") or not draft.gateway.values.metrics:
        return
    path: KeyPath = ("gateway", "metrics")
    address, port = endpoint_of(draft.gateway.values.metrics)
    hint = f'an address that this machine has for itself, or "{LOOPBACK}:{port}"'
    for virtual in draft.virtuals:
        if virtual.values.address == address:
            yield Problem(path, f"{address} is the address of the virtual server {_label(virtual)}", hint)
            return
    for real in draft.reals:
        if real.values.address == address:
            yield Problem(path, f"{address} is the address of the real server {_label(real)}", hint)
            return


def _servers(draft: Draft) -> Iterator[Problem]:
    """`servers` name real servers, each place once, of the virtual server's IP version."""
    addresses = {real.values.name: real.values.address for real in draft.reals if real.good("name")}
    for virtual in draft.virtuals:
        seen: set[tuple[str, int | None]] = set()
        for index, server in enumerate(virtual.values.servers):
            path = (*virtual.path, "servers", index)
            if server == NO_SERVER:
                continue
            if server.real not in draft.names:
                yield from _unknown_real(path, server.real, draft)
                continue
            place = (server.real, server.port or virtual.values.port)
            if place in seen:
                where = f"{server.real} port {place[1]}" if place[1] else server.real
                yield Problem(path, f"{where} stands in this list already", "weight gives a server more")
            seen.add(place)
            yield from _same_version(path, virtual.values.address, server.real, addresses.get(server.real))


def _same_version(
    path: KeyPath, virtual: Address | None, name: str, real: Address | None
) -> Iterator[Problem]:
    if virtual is not None and real is not None and virtual.version != real.version:
        message = f"{name} has an IPv{real.version} address, the virtual server an IPv{virtual.version} one"
        yield Problem(path, message, "one virtual server a protocol version")


def _unknown_real(path: KeyPath, name: str, draft: Draft) -> Iterator[Problem]:
    if not draft.reals and not draft.names:
        return  # that there is no [[real]] has been said
    hint = did_you_mean(name, sorted(draft.names))
    owner = next((real.values.name for real in draft.reals if _has_address(real, name)), "")
    if owner:
        hint = f"servers stand here by name; {show(owner)} has this address"
    yield Problem(path, f"no [[real]] is named {show(name)}", hint)


def _has_address(real: Entry[RealTable], text: str) -> bool:
    try:
        return real.values.address == ip_address(text)
    except ValueError:
        return False


def _backups(draft: Draft) -> Iterator[Problem]:
    """Backups exist, and no chain of them leads back to where it started (A27)."""
    entries: list[Entry[RealTable] | Entry[VirtualTable]] = [*draft.reals, *draft.virtuals]
    for entry in entries:
        name = entry.values.backup
        if name and name not in draft.names:
            yield from _unknown_real((*entry.path, "backup"), name, draft)
        elif name:
            yield from _backup_version(entry, draft)
    backups = {real.values.name: real.values.backup for real in draft.reals if real.good("name")}
    for real in draft.reals:
        chain = [real.values.name]
        while (following := backups.get(chain[-1], "")) and following not in chain:
            chain.append(following)
        if not following or following != chain[0]:
            continue
        message = f"the backups run in a circle: {' -> '.join([*chain, following])}"
        alone = len(chain) == 1
        yield Problem((*real.path, "backup"), "a real server is no backup of itself" if alone else message)


def _backup_version(entry: Entry[RealTable] | Entry[VirtualTable], draft: Draft) -> Iterator[Problem]:
    """A backup has addresses of the same IP version as what it stands for."""
    addresses = {real.values.name: real.values.address for real in draft.reals if real.good("name")}
    own, other = entry.values.address, addresses.get(entry.values.backup)
    if own is not None and other is not None and own.version != other.version:
        backup, who = entry.values.backup, _label(entry)
        message = f"{backup} has an IPv{other.version} address, {who} an IPv{own.version} one"
        yield Problem((*entry.path, "backup"), message, "a backup serves the same clients")


def _sticky(draft: Draft) -> Iterator[Problem]:
    for virtual in draft.virtuals:
        values = virtual.values
        if values.sticky_group and not values.sticky and virtual.good("sticky"):
            message = f"{show(values.sticky_group)} has no effect while sticky is 0"
            hint = 'set how long a client stays with its server, e.g. sticky = "5m"'
            yield Problem((*virtual.path, "sticky_group"), message, hint)
        bits = 128 if values.address is None else PREFIX_BITS[values.address.version]
        if values.sticky_mask is not None and values.sticky_mask > bits:
            message = f"{values.sticky_mask} is not a prefix length of IPv4 (allowed: 0 to {bits})"
            yield Problem((*virtual.path, "sticky_mask"), message)


def _sticky_groups(draft: Draft) -> Iterator[Problem]:
    """Members of a group share their entries (A8), so they must agree on what an entry is."""
    groups: dict[str, list[Entry[VirtualTable]]] = {}
    for virtual in draft.virtuals:
        if virtual.values.sticky_group and virtual.values.sticky:
            groups.setdefault(virtual.values.sticky_group, []).append(virtual)
    for group, members in groups.items():
        for index, member in enumerate(members):
            yield from _compare_members(group, member, members[:index])
            yield from _shares_servers(group, member, members)


def _compare_members(
    group: str, member: Entry[VirtualTable], earlier: list[Entry[VirtualTable]]
) -> Iterator[Problem]:
    mine = sticky_bits(member)
    for other in earlier:
        of_group = f"{_label(other)} of the sticky group {show(group)}"
        if member.values.sticky != other.values.sticky:
            message = f"{member.values.sticky:g} s here, {other.values.sticky:g} s in {of_group}"
            yield Problem((*member.path, "sticky"), message, "a sticky group has one duration")
            return
        comparable = member.good("sticky_refresh") and other.good("sticky_refresh")
        if comparable and member.values.sticky_refresh != other.values.sticky_refresh:
            here, there = show(member.values.sticky_refresh), show(other.values.sticky_refresh)
            message = f"{here} here, {there} in {of_group}"
            yield Problem((*member.path, "sticky_refresh"), message, "a sticky group has one way")
            return
        theirs = sticky_bits(other)
        if mine and theirs and mine[0] == theirs[0] and mine != theirs:
            message = f"/{mine[1]} here, /{theirs[1]} in {of_group}"
            yield Problem((*member.path, "sticky_mask"), message, "a sticky group has one mask")
            return


def _shares_servers(
    group: str, member: Entry[VirtualTable], members: list[Entry[VirtualTable]]
) -> Iterator[Problem]:
    """Members without a common real server would only overwrite each other's entries."""
    mine = {server.real for server in member.values.servers}
    others = [entry for entry in members if entry is not member]
    theirs = {server.real for entry in others for server in entry.values.servers}
    all_good = all(entry.good("servers") for entry in members)
    if others and all_good and not mine & theirs:
        message = f"shares no real server with the others of the sticky group {show(group)}"
        yield Problem((*member.path, "sticky_group"), message, "leave the group out here")


def sticky_bits(virtual: Entry[VirtualTable]) -> tuple[int, int] | None:
    """IP version and prefix length of its sticky entries; None where either was refused."""
    address, mask = virtual.values.address, virtual.values.sticky_mask
    if address is None or not virtual.good("sticky_mask"):
        return None
    return address.version, PREFIX_BITS[address.version] if mask is None else mask


_CHECKS: tuple[Check, ...] = (
    _interfaces,
    _real_names,
    _virtual_names,
    _real_addresses,
    _overlaps,
    _every_port,
    _response_times,
    _syn_guards,
    _metrics,
    _servers,
    _backups,
    _sticky,
    _sticky_groups,
)
