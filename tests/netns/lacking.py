"""Runs a program as on a kernel without nfnetlink, or without nf_tables: `lacking.py PROGRAM [ARGUMENTS]`.

There is no socket of NETLINK_NETFILTER for it and its children then: a filter of system calls (seccomp(2))
gives what such a kernel does, EPROTONOSUPPORT.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

_SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
_NETLINK_NETFILTER = 12
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: a word of the call, a comparison, the end
_NUMBER, _FAMILY, _PROTOCOL = 0, 16, 32  # where they stand (struct seccomp_data)

_FILTER = (
    (_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 5, _SOCKET),
    (_LOAD, 0, 0, _FAMILY), (_EQUAL, 0, 3, socket.AF_NETLINK),
    (_LOAD, 0, 0, _PROTOCOL), (_EQUAL, 0, 1, _NETLINK_NETFILTER),
    (_RETURN, 0, 0, _ERRNO | errno.EPROTONOSUPPORT), (_RETURN, 0, 0, _ALLOW),
)  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main() -> None:
    """Give it up, and become the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = b"".join(struct.pack("=HBBI", *each) for each in _FILTER)
    program = _Program(len(_FILTER), code)
    for words in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
