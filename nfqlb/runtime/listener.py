"""A unix socket file to listen at, with the right owner and mode, and never at somebody else's expense.

The socket a dead process left is replaced; one that is answered, or a file of another kind, is refused.
Missing directories are made. The mode is set before anybody can connect.
"""

import errno
import logging
import os
import socket
import stat
import struct
from pathlib import Path

from nfqlb.runtime.access import Groups, gid_of
from nfqlb.runtime.protocol import ControlError, Peer

logger = logging.getLogger(__name__)

BACKLOG = 32  # connections the kernel keeps waiting
PATH_BYTES = 107  # of a unix socket's path (unix(7): sun_path has 108, the last one is zero)


def listen(path: Path, groups: Groups) -> socket.socket:
    """A listening socket at `path`, non-blocking. Raises ControlError, see the module."""
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ControlError("bad-socket", f"{path}: a socket's path may have {PATH_BYTES} bytes at most")
    try:
        _make_directory(path.parent)
        _clear(path)
        return _bound(path, groups)
    except OSError as error:
        raise ControlError(
            "bad-socket",
            f"{path}: the control socket cannot be made: {error.strerror}",
            "[gateway] socket or --socket names another place",
        ) from None


def inode(path: Path) -> tuple[int, int]:
    """Which file is at `path`: its device and inode. Raises OSError."""
    status = path.lstat()
    return status.st_dev, status.st_ino


def peer(sock: socket.socket) -> Peer:
    """The credentials of a connected unix socket's other end; for a listener's, those it had at listen()."""
    return Peer(*struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def _make_directory(directory: Path) -> None:
    missing = [level for level in (directory, *directory.parents) if not level.exists()]
    for level in reversed(missing):
        level.mkdir(exist_ok=True)
        level.chmod(0o755)  # whatever the umask: the group has to get through


def _clear(path: Path) -> None:
    """Make way: remove a dead process's socket. Raises ControlError where the path is anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError("bad-socket", f"{path} exists and is not a socket", "move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            owner = "another process"  # alive, with more connections waiting than it takes
        else:
            owner = f"process {peer(probe).pid}"
    raise ControlError(
        "already-running",
        f"{path}: {owner} answers there already",
        "stop that gateway first, or give this one a [gateway] socket of its own",
    )


def _bound(path: Path, groups: Groups) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        try:
            _restrict(path, groups)
            listener.listen(BACKLOG)  # only now can anybody connect
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except OSError:
        listener.close()
        raise
    return listener


def _restrict(path: Path, groups: Groups) -> None:
    """Mode 0660 and the operators' group, or where that does not exist the one of the process.

    The readers' group is let in by an access control list. Where the file system has none, the readers
    stay outside, and the log says so: more for them would mean more for everybody.
    """
    operators, readers = gid_of(groups.operators), gid_of(groups.readers)
    if operators is not None and path.lstat().st_gid != operators:  # under systemd it is theirs by birth
        os.chown(path, -1, operators)
    path.chmod(0o660)
    if readers is None:
        return
    try:
        os.setxattr(path, "system.posix_acl_access", _acl(readers))
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise
        logger.warning("%s: the group %s cannot be let in: %s", path, groups.readers, error.strerror)


def _acl(group: int) -> bytes:
    """Read and write for the owner, the file's group and one group more (linux/posix_acl_xattr.h)."""
    owner, file_group, named_group, mask, others = 0x01, 0x04, 0x08, 0x10, 0x20
    nobody, both = 0xFFFFFFFF, 6
    entries = (
        (owner, both, nobody),
        (file_group, both, nobody),
        (named_group, both, group),
        (mask, both, nobody),
        (others, 0, nobody),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
