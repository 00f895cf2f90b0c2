"""What somebody took from the gateway, found and put back: rules, addresses, settings.

Owns the comparison of what a running gateway needs in the kernel with what is there. Done in one go and
without any state, so that it may be done in a process of its own (`runtime.errand`).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from nfqlb.core.spec import Config
from nfqlb.netfilter import address, rules, sysctl
from nfqlb.netfilter.address import Placement
from nfqlb.netfilter.changes import ADDRESSES, RULES, SETTINGS
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.render import FAMILIES
from nfqlb.netfilter.state import Record

_VERSIONS = {family: RULES[number] for family, number in zip(FAMILIES, RULES, strict=True)}


@dataclass(slots=True)
class Damage:
    """What was missing or not as meant, a line each; what could not be looked at or put back."""

    found: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def settings(config: Config) -> dict[str, str]:
    """The settings that a running gateway needs, as paths under /proc/sys with their values."""
    return sysctl.forwarding(config) | sysctl.tracking(config)


def mend(
    config: Config, subjects: Collection[str], known: Iterable[Placement] = (), *, change: bool = True
) -> Damage:
    """Looks at some subjects (of `changes.EVERYTHING`) and puts right what is wrong with them.

    `known` are addresses that were held before. Rules first, then addresses: otherwise the gateway's own
    TCP would answer for them. With `change` False it only looks. Never raises KernelError.
    """
    damage = Damage()
    families = [family for family in FAMILIES if _VERSIONS[family] in subjects]
    try:
        if families:
            damage.found.extend(rules.mend(config, families, change=change))  # as far as it comes
        if ADDRESSES in subjects:
            lost = address.mend(config, known, change=change)
            damage.found += [f"address {placement}: missing" for placement in lost]
    except KernelError as error:
        damage.failed.append(str(error))
    try:
        if SETTINGS in subjects:
            damage.found += _settings(config, change=change)
    except KernelError as error:
        damage.failed.append(str(error))
    return damage


def _settings(config: Config, *, change: bool) -> list[str]:
    wanted = settings(config)
    found = sysctl.overwritten(wanted)
    if found and change:
        still_there = {path: value for path, value in wanted.items() if (sysctl.ROOT / path).exists()}
        sysctl.switch(still_there, Record())
    return [f"{path} is {value}, should be {wanted[path]}" for path, value in found.items()]
