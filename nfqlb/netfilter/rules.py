"""`nfqlb rules`: the bundle shown, put in, compared with what is there, and taken out.

Owns the order of things. Rules go in table by table, the way out before the way in; each table
changes in one transaction, and where a later table is refused the earlier ones are put back as
they were. Removal needs no configuration: it goes by the prefix of our chains, the tag of our
addresses and the record of changed settings.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Config
from nfqlb.netfilter import accounting, address, sysctl, timeouts
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import Iptables
from nfqlb.netfilter.queue_status import read_queues
from nfqlb.netfilter.render import FAMILIES, IPV4, Bundle, Family, render
from nfqlb.netfilter.ruleset import Table, differences, ours, parse, replacement
from nfqlb.netfilter.state import DIRECTORY, Kept, Record

_REMOVAL_ORDER = ("raw", "mangle", "nat", "filter", "security")
"""The way in first: no packet is let in whose answer nobody catches. What stands behind all, last."""


def show(config: Config) -> str:
    """The text that `apply` gives to iptables-restore, IPv4 first. Raises KernelError as `render` does."""
    bundle = render(config)
    return "\n".join(text for family in FAMILIES if (text := bundle.text(family)))


def apply(config: Config, *, force: bool = False) -> None:
    """Puts the rules of `config` in; what is already as meant is not touched, its counters go on.

    Without `force` only where somebody reads both queues: without a reader the kernel drops every
    packet of the virtual servers. Raises KernelError, with everything as it was before.
    """
    policies = _keeps_timeouts(config)
    bundle = render(config, policies=policies, behind=_has_last_table())
    live = {family: _live(family, bundle) for family in FAMILIES}
    if not force:
        _refuse_unread(bundle)
    if policies:
        timeouts.put(config)  # first, as rules name them
    done: list[Family] = []
    try:
        for family in FAMILIES:
            done.append(family)
            _load(family, bundle.text(family), live[family])
    except KernelError:
        for family in reversed(done):
            _roll_back(family, live[family])
        if policies:
            timeouts.remove()  # those that no rule names
        raise
    if policies:
        timeouts.remove(keep=frozenset(timeouts.wanted(config)))


def verify(config: Config) -> list[str]:
    """How the live rules differ from those of `config`, one line each; [] where they are as meant."""
    policies = _keeps_timeouts(config)
    bundle = render(config, policies=policies, behind=_has_last_table())
    found = []
    for family in FAMILIES:
        found += _compare(family, bundle, _live(family, bundle))
    return found + (_missing_timeouts(config) if policies else []) + _strangers()


def mend(config: Config, families: Iterable[Family], *, change: bool) -> Iterator[str]:
    """What is not as `config` means it in the tables of some families, a line each; corrected afterwards.

    As fast as may be: a family whose rules need no correction costs one listing. With `change` False
    nothing is corrected. Raises KernelError, after it has yielded what it could not correct.
    """
    policies = _keeps_timeouts(config)
    bundle = render(config, policies=policies, behind=_has_last_table())
    if policies and (missing := _missing_timeouts(config)):
        yield from missing
        if change:
            timeouts.put(config)  # first, as rules name them
    for family in families:
        if not bundle.text(family):
            continue
        live = _live(family, bundle)
        if lines := _compare(family, bundle, live):
            yield from lines
            if change:
                _refuse_unread(bundle)
                _load(family, bundle.text(family), live)


def remove(directory: Path = DIRECTORY) -> list[str]:
    """Takes out everything that is ours: addresses, rules, changed settings, what is kept, in this order.

    Returns a line for each thing removed; [] where there was nothing. Other rules stay as they are,
    in order. Raises KernelError.
    """
    done = address.take_down()
    done += withdraw()
    done += [f"put back: {line}" for line in sysctl.restore(Record(directory))]
    return done + Kept(directory).remove()


def withdraw() -> list[str]:
    """Takes out our rules and what they name, in both families and kinds of tables, and our counters.

    Raises KernelError.
    """
    done = []
    for family in FAMILIES:
        tables = Iptables(family.program)
        if not tables.installed:
            continue
        if family is IPV4 or _holds_ours(tables):  # a kernel without IPv6 cannot list its tables
            done += _clear(tables)
    done += withdraw_other_kind()
    done += [f"conntrack time-outs {name}" for name in timeouts.remove()]
    return done + accounting.remove()


def withdraw_other_kind() -> list[str]:
    """Takes our rules out of the tables that `iptables` does not mean here, and meant when they were made.

    Every packet meets both kinds. Raises KernelError.
    """
    return [line for other in _other_kinds() if _holds_ours(other) for line in _clear(other)]


@cache
def _has_last_table() -> bool:
    """Whether the kernel has the table `security`, behind all others; legacy ones may lack it."""
    return Iptables().has("security")


def _keeps_timeouts(config: Config) -> bool:
    """Whether the kernel shall keep our time-outs and can; where it cannot, `host` says what that means."""
    return any(virtual.datapath == OFFLOAD for virtual in config.virtuals) and timeouts.available()


def _compare(family: Family, bundle: Bundle, live: dict[str, Table]) -> list[str]:
    """How one family's live rules differ from the meant ones."""
    wanted = parse(bundle.text(family))
    return [
        f"{family.program} {line}"
        for name in dict.fromkeys([*wanted, *live])
        for line in differences(wanted.get(name), live.get(name))
    ]


def _missing_timeouts(config: Config) -> list[str]:
    missing = timeouts.wanted(config).keys() - set(timeouts.present())
    return [f"conntrack time-outs {name}: missing" for name in sorted(missing)]


def _live(family: Family, bundle: Bundle) -> dict[str, Table]:
    """The live tables. A family that the rules do not need may as well be missing on this machine."""
    tables = Iptables(family.program)
    if bundle.text(family):
        return parse(tables.save())
    try:
        return parse(tables.save())
    except KernelError:
        return {}


def _refuse_unread(bundle: Bundle) -> None:
    read = {queue.number for queue in read_queues()}
    unread = [str(number) for number in bundle.queues if number not in read]
    if unread:
        plural = "s" if len(unread) > 1 else ""
        raise KernelError(
            f"nobody reads queue{plural} {' and '.join(unread)}: with these rules every packet to the "
            "virtual servers would be lost; start `nfqlb run`, or use --force"
        )


def _load(family: Family, text: str, live: dict[str, Table]) -> None:
    wanted = parse(text)
    changed = [
        name for name in dict.fromkeys([*wanted, *live]) if differences(wanted.get(name), live.get(name))
    ]
    if changed:
        Iptables(family.program).restore(replacement(text, live, changed))


def _roll_back(family: Family, before: dict[str, Table]) -> None:
    """Brings our part of every table back to what it was; foreign rules were never changed."""
    tables = Iptables(family.program)
    for name, table in parse(tables.save()).items():
        old = before.get(name) or Table(name, {})
        if (table.own, table.links) != (old.own, old.links):
            tables.restore(replacement(ours(old), {name: table}, [name]))


def _clear(tables: Iptables) -> list[str]:
    """Empties one kind of tables of ours, the way in first."""
    live = {name: table for name, table in parse(tables.save()).items() if table.touched}
    order = sorted(live, key=lambda name: _REMOVAL_ORDER.index(name) if name in _REMOVAL_ORDER else -1)
    done = []
    for name in order:
        tables.restore(replacement("", live, [name]))
        chains = ", ".join(live[name].own) or "jumps alone"
        done.append(f"{tables.program} {name}: {chains}")
    return done


def _strangers() -> list[str]:
    """Chains of ours in the tables of the other kind: packets would meet two sets of rules."""
    return [
        f"{other.program}: holds chains of nfqlb as well; `nfqlb rules remove` clears both"
        for other in _other_kinds()
        if _holds_ours(other)
    ]


def _other_kinds() -> list[Iptables]:
    """The programs for the kind of tables that is not in use here, where they are installed."""
    others = [tables.other_kind() for family in FAMILIES if (tables := Iptables(family.program)).installed]
    return [other for other in others if other.installed]


def _holds_ours(tables: Iptables) -> bool:
    """Whether chains of ours are in there. Tables that cannot even be listed hold none."""
    try:
        return any(table.touched for table in parse(tables.save()).values())
    except KernelError:
        return False
