"""Kernel settings that nfqlb changes while it runs, and puts back.

A change is recorded before it is made, and the record keeps the value that stood there before the
first start, however often nfqlb crashed since. Forwarding is set per interface: writing
`ip_forward` would overwrite what the administrator set for each of them.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Config
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.state import Change, Record

ROOT = Path("/proc/sys")
FORWARDED = "net/ipv4/conf"
"""Where each interface has a directory of its own."""
TRACKED = "net/netfilter/nf_conntrack_max"
"""How many connections the kernel's table may hold: one for all network namespaces, set in the first."""


def forwarding(config: Config) -> dict[str, str]:
    """What must be switched on for `config`, as paths under /proc/sys with their values.

    IPv4 alone: for IPv6 it is the administrator's to decide, since it stops router advertisements
    from being heard.
    """
    if not any(virtual.address.version == 4 for virtual in config.virtuals):
        return {}
    interfaces = dict.fromkeys(config.gateway.outside + config.gateway.inside)
    return {f"{FORWARDED}/{name}/forwarding": "1" for name in interfaces}


def tracking(config: Config, root: Path = ROOT) -> dict[str, str]:
    """What the kernel's connection table needs where it translates (datapath offload).

    It must hold `max_connections`, those of others, and ours that only linger. A limit that is higher
    already stays; where it cannot be set from here, nothing is wanted (`host` compares). Nothing else is
    changed: accounting, time stamps and events of the table stay as they are.
    """
    if all(virtual.datapath != OFFLOAD for virtual in config.virtuals) or not _settable(root, TRACKED):
        return {}
    current = int(_read(root, TRACKED))
    needed = tracked(config)
    return {TRACKED: str(max(current, needed) if current else 0)}  # 0: no limit


def tracked(config: Config) -> int:
    """How many connections the kernel's table should have room for: a quarter more than our own."""
    return config.gateway.max_connections * 5 // 4


def _settable(root: Path, path: str) -> bool:
    """Whether a setting may be written here, whoever asks: some are read-only in all but one namespace."""
    try:
        return bool((root / path).stat().st_mode & 0o200)
    except OSError:
        return False


def switch(wanted: Mapping[str, str], record: Record, root: Path = ROOT) -> list[str]:
    """Sets what is not as wanted; puts back what an earlier start changed and nobody wants any more.

    Returns a line for each value changed. Raises KernelError, with nothing half recorded.
    """
    before = record.read()
    kept = [change for change in before if change.path in wanted]
    known = {change.path for change in kept}
    fresh = [
        Change(path, _read(root, path), value)
        for path, value in wanted.items()
        if path not in known and _read(root, path) != value
    ]
    dropped = [change for change in before if change.path not in wanted]
    if fresh:  # else all is recorded, and there need not be room to do it again
        record.write(dropped + kept + fresh)
    done = _put_back(dropped, root)
    if dropped:
        record.write(kept + fresh)
    for path, value in wanted.items():
        if _read(root, path) != value:
            _write(root, path, value)
            done.append(f"{path} = {value}")
    return done


def overwritten(wanted: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """Which of the wanted values do not stand there, with those that do. What is gone is left out."""
    found = {}
    for path, value in wanted.items():
        with contextlib.suppress(KernelError):
            if (current := _read(root, path)) != value:
                found[path] = current
    return found


def renamed(names: Mapping[str, str], record: Record) -> None:
    """What was changed of interfaces is theirs whatever they are called; `names` are before and now."""
    before = record.read()
    prefixes = {f"{FORWARDED}/{old}/": f"{FORWARDED}/{new}/" for old, new in names.items()}
    after = []
    for change in before:
        prefix = next((prefix for prefix in prefixes if change.path.startswith(prefix)), "")
        path = prefixes.get(prefix, "") + change.path.removeprefix(prefix)
        after.append(replace(change, path=path))
    if after != before:
        record.write(after)


def restore(record: Record, root: Path = ROOT) -> list[str]:
    """Puts every recorded value back. Returns a line for each; [] where nothing was recorded.

    A value that somebody changed since is left as it is, and so is one whose interface is gone.
    """
    done = _put_back(record.read(), root)
    record.write([])
    return done


def _put_back(changes: list[Change], root: Path) -> list[str]:
    done = []
    for change in reversed(changes):
        try:
            current = _read(root, change.path)
        except KernelError:
            continue
        if current == change.value and current != change.before:
            _write(root, change.path, change.before)
            done.append(f"{change.path} = {change.before}")
    return done


def _read(root: Path, path: str) -> str:
    try:
        return (root / path).read_text(encoding="ascii").strip()
    except OSError as error:
        raise KernelError(f"{root / path}: cannot be read: {error.strerror}") from None


def _write(root: Path, path: str, value: str) -> None:
    try:
        (root / path).write_text(value + "\n", encoding="ascii")
    except OSError as error:
        raise KernelError(
            f"{root / path}: cannot be set to {value}: {error.strerror}; run as root, outside a container "
            "that forbids it, or set it yourself"
        ) from None
