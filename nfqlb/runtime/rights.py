"""The rights of this process, and how it gives up those that it does not need; it never gets them back.

Owns what supervisor and worker keep of root's capabilities (capabilities(7)). Under systemd the unit has
taken away more than that already; started by hand as root, both would have them all.
"""

import ctypes
import logging
import os
from collections.abc import Iterable

from nfqlb.netfilter.procfs import NET_ADMIN, NET_RAW, capabilities

logger = logging.getLogger(__name__)

# include/uapi/linux/capability.h
CHOWN, DAC_OVERRIDE, FOWNER, SYS_NICE = 0, 1, 3, 23
_SETPCAP = 8  # to make the bounding set smaller
#: The worker gives verdicts, asks conntrack, and sends resets, all over netlink and raw sockets.
WORKER = frozenset({NET_ADMIN, NET_RAW})
#: The supervisor changes rules, addresses and settings, too. It gives its socket to a group, reads its
#: configuration and makes its files wherever they are to be, and has workers that go before other programs.
SUPERVISOR = WORKER | {CHOWN, DAC_OVERRIDE, FOWNER, SYS_NICE}

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38  # include/uapi/linux/prctl.h
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def keep(kept: Iterable[int]) -> None:
    """Give up all capabilities but these, for what is started from here too; no program gives more
    (no_new_privs). What the kernel refuses stays as it is, and the log says so.
    """
    try:
        _keep(frozenset(kept))
    except OSError as error:
        logger.warning("root's rights that are not needed cannot be given up: %s", error.strerror)


def _keep(kept: frozenset[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    permitted = capabilities()
    if permitted <= kept and not capabilities(kind="Inh"):
        return
    if _SETPCAP in permitted:
        for number in sorted(capabilities(kind="Bnd") - kept):
            _check(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    left = sum(1 << number for number in permitted & kept)
    sets = (_Sets * 2)(*(_Sets(half, half, 0) for half in (left & 0xFFFF_FFFF, left >> 32)))
    _check(libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), sets))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
