"""Who may ask the running gateway what.

Three levels, each with all of the ones below it: `read` looks, `operate` changes servers, `admin` changes
the gateway. The kernel says who is at the other end of the socket (unix(7): SO_PEERCRED, and
SO_PEERGROUPS for the groups); what that means is said here. Root, and the user that the gateway runs as, are
admin; the group `nfqlb` may operate and the group `nfqlb-read` read; everybody else is turned away.
"""

import grp
import os
import pwd
import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from nfqlb.runtime.protocol import ControlError, Level, Peer, Request


class Groups(NamedTuple):
    """The names of the groups that may come in: who may operate, and who may read."""

    operators: str = "nfqlb"
    readers: str = "nfqlb-read"

    def numbers(self) -> "Numbers":
        """Their numbers at present; None where there is no such group."""
        return gid_of(self.operators), gid_of(self.readers)


#: The operators' and the readers' group, None where there is none.
Numbers = tuple[int | None, int | None]


GROUPS = Groups()
#: The level that a command needs; of those that are not here, the lowest.
NEEDED: dict[str, Level] = {
    "set-real": Level.OPERATE,
    "set-virtual": Level.OPERATE,
    "clear-sticky": Level.OPERATE,
    "batch": Level.OPERATE,
    "adopt": Level.OPERATE,
    "reload": Level.ADMIN,
    "diff": Level.ADMIN,
    "verify": Level.ADMIN,
    "capture": Level.ADMIN,
}
_HOW = {
    Level.READ: f"root and the groups {GROUPS.operators} and {GROUPS.readers} may",
    Level.OPERATE: f"root and the group {GROUPS.operators} may",
    Level.ADMIN: "root may",
}
_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_BYTES = 1024  # the most that Python reads of a socket's option: 256 groups


def level_of(sock: socket.socket, numbers: Numbers) -> Level:
    """What the other end of a connected unix socket may do."""
    _, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return level(uid, {gid, *_groups(sock)}, own=os.geteuid(), numbers=numbers)


def level(uid: int, groups: Collection[int], *, own: int, numbers: Numbers) -> Level:
    """What a user in some groups may do.

    `own` is the user of the gateway.
    """
    operators, readers = numbers
    if uid in (0, own):
        return Level.ADMIN
    if operators is not None and operators in groups:
        return Level.OPERATE
    return Level.READ if readers is not None and readers in groups else Level.NONE


def check(request: Request, cmd: str | None = None) -> None:
    """Raises ControlError "forbidden" where who asks may not have the request's command, or `cmd`."""
    cmd = request.cmd if cmd is None else cmd
    needed = NEEDED.get(cmd, Level.READ)
    if request.level < needed:
        had = request.level.shown
        raise ControlError("forbidden", f"{cmd} needs the level {needed.shown}; you have {had}", _HOW[needed])


def stranger(peer: Peer, groups: Groups) -> ControlError:
    """The refusal of somebody who may not even read."""
    hint = f"root and the groups {groups.operators} and {groups.readers} may"
    return ControlError("forbidden", f"{user(peer.uid)} may not ask this gateway", hint)


def who(request: Request) -> str:
    """Who asks, for people: "user root (uid 0), process 123"."""
    peer = request.peer
    return "the supervisor" if peer is None else f"{user(peer.uid)}, process {peer.pid}"


@lru_cache(maxsize=256)
def user(uid: int) -> str:
    """A user, with the name where there is one; asked for once, as the answer may come from far away."""
    with suppress(KeyError):
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    return f"user {uid}"


def gid_of(group: str) -> int | None:
    """A group's number, None where there is no such group."""
    with suppress(KeyError):
        return grp.getgrnam(group).gr_gid
    return None


def _groups(sock: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of a socket's other end; none where they cannot be had: too many, too old."""
    with suppress(OSError):
        data = sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, _BYTES)
        return struct.unpack(f"{len(data) // 4}I", data)
    return ()
