"""The files that a gateway which is gone has left, beside what it has left in the kernel.

A next start takes over from them, so nothing but `nfqlb rules remove` takes them away.
"""

import os
import socket
from pathlib import Path

from nfqlb.netfilter import alone
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace, namespace
from nfqlb.netfilter.state import DIRECTORY, Claim, lock_file
from nfqlb.runtime.journal import journal_file


def clear(
    control: Path, directory: Path = DIRECTORY, where: Namespace | None = None, storage: Path | None = None
) -> list[str]:
    """Remove journal, lock and sockets of this network namespace; `control` is the control socket.

    Returns a line for each that was there. A worker that serves without its supervisor keeps them. Raises
    KernelError where a gateway is there, or one cannot be removed.
    """
    where = where or namespace()
    lock, place = lock_file(directory, where), directory / f"net-{where.inode}.sock"
    locked = lock.exists()
    with Claim(directory, where):
        left = alone.worker(place)
        if left is not None:
            return [f"a worker without supervisor goes on for another {left:.0f} s, with its journal"]
        journal = journal_file(where, storage)
        found = [path for path in (journal, place) if _removed(path)]
        found += [control] if _dead(control) and _removed(control) else []
    return [f"{path} removed" for path in (*found, *([lock] if locked else []))]


def _removed(path: Path) -> bool:
    """Remove a file; whether it was there. One in somebody else's directory is not ours."""
    try:
        if path.parent.stat(follow_symlinks=False).st_uid != os.geteuid():
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError(f"{path}: cannot be removed: {error.strerror}") from None
    return True


def _dead(path: Path) -> bool:
    """Whether there is a socket at which nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # by a file of any kind
            return path.is_socket()
        except OSError:
            return False
    return False
