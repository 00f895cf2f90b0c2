"""What a gateway leaves to the next one while packets pass: its bound sockets, without a moment's gap.

Owns the way in which that is passed on, over a unix socket of mode 0600 for each network namespace. The
`Holder` is the listening end: the supervisor's, and after its death the worker's, which has inherited it. An
`Heir` connects to it and gets a deed, which is a line of JSON with the descriptors beside it (unix(7):
SCM_RIGHTS): of the configuration, and of what is bound. Until the heir says `END` the holder goes on as
if nothing had happened, and it does so if the heir hangs up. After `END` the holder ends, leaves rules,
addresses, settings and journal as they are, and the heir sees that its connection is closed.

Both ends are root's, or of the user that the gateway runs as; each makes sure of that.
"""

import array
import json
import os
import pickle
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import Self

from nfqlb import __version__
from nfqlb.core import spec
from nfqlb.core.spec import Config
from nfqlb.netfilter import alone
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.state import DIRECTORY
from nfqlb.runtime.listener import peer

_END = b"end\n"
_DEED = 1 << 16  # bytes of a deed
_MOST = 64  # descriptors of a deed
_CONFIGURATION = "configuration"
ANSWER = 5.0  # seconds that a holder may take to show its deed
LEAVE = 10.0  # seconds that it may take to end


def place(directory: Path = DIRECTORY) -> Path:
    """Where the gateway of this network namespace can be asked for what it has."""
    return directory / alone.place().name


class Holder:
    """The listening end. Raises KernelError where the place cannot be had."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # whoever had it is gone, or has said that he will be
            before = os.umask(0o177)
            try:
                self._listener.bind(str(path))
            finally:
                os.umask(before)
            self._listener.listen(4)
        except OSError as error:
            self._listener.close()
            raise KernelError(f"{path}: cannot be listened at: {error.strerror}") from None

    def fileno(self) -> int:
        """The descriptor that is readable when an heir has come."""
        return self._listener.fileno()

    def accept(self) -> socket.socket | None:
        """An heir's connection, which does not block; None where there is none that may have it."""
        with suppress(OSError):
            heir, _ = self._listener.accept()
            if peer(heir).uid in (0, os.geteuid()):
                heir.setblocking(False)
                return heir
            heir.close()
        return None

    def alone(self, left: float) -> None:
        """Who holds it is alone, for so many seconds more: let it be seen from outside."""
        alone.mark(self._path, left)

    def close(self, *, remove: bool = False) -> None:
        """Listen no more; `remove` the place after a clean stop."""
        self._listener.close()
        if remove:
            self._path.unlink(missing_ok=True)


def show(heir: socket.socket, config: Config, bound: Mapping[str, int], *, orphan: bool) -> bool:
    """Give an heir the deed; False if it cannot be sent.

    `bound` are descriptors by name; `orphan` says that there is no supervisor any more.
    """
    file = os.memfd_create("nfqlb-estate")
    try:
        os.write(file, pickle.dumps(config))
        given = {_CONFIGURATION: file, **bound}
        deed = {
            "version": __version__, "shape": shape(), "pid": os.getpid(), "orphan": orphan, "bound": [*given],
        }  # fmt: skip
        socket.send_fds(heir, [json.dumps(deed).encode()], [*given.values()])
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def is_end(heir: socket.socket) -> bool | None:
    """Whether an heir whose connection is readable wants all; False: it is gone, None: it said nothing."""
    try:
        return heir.recv(len(_END)) == _END
    except BlockingIOError:
        return None
    except OSError:
        return False


class Heir:
    """The other end, as connected by `find`: the deed of a gateway that is there.

    `pid` is the process that answered, `orphan` whether that is a worker without a supervisor. `config` is
    what it runs, None where its version means something else by it; `bound` its descriptors by name, which
    are to be taken out by whoever uses them.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(ANSWER)
        self.bound: dict[str, int] = {}
        try:
            self._read()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
            self.close()
            what = "in time" if isinstance(error, TimeoutError) else f"as it should: {error}"
            raise KernelError(f"the gateway that runs here does not answer {what}") from None

    def _read(self) -> None:
        data, ancillary, _, _ = self._connection.recvmsg(
            _DEED, socket.CMSG_SPACE(_MOST * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
        descriptors = array.array("i")
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
        # under whatever names, they are to be closed should it fail
        self.bound = {str(number): each for number, each in enumerate(descriptors)}
        if not data:
            raise ValueError("it hung up")
        deed = json.loads(data)
        self.version, self.pid, self.orphan = str(deed["version"]), int(deed["pid"]), bool(deed["orphan"])
        self.bound = dict(zip(deed["bound"], descriptors, strict=True))
        file = self.bound.pop(_CONFIGURATION)
        try:
            known = deed["shape"] == shape()
            self.config = _configuration(file) if known else None
        finally:
            os.close(file)

    def end(self) -> None:
        """Have the other end, and wait until it has. Raises KernelError where it does not."""
        try:
            self._connection.send(_END)
            self._connection.settimeout(LEAVE)
            while self._connection.recv(1):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass  # it is gone already
        except OSError:
            raise KernelError(f"the gateway that runs here, process {self.pid}, does not let go") from None
        finally:
            self._connection.close()

    def close(self) -> None:
        """Hang up, and give back what nobody has taken out."""
        self._connection.close()
        while self.bound:
            os.close(self.bound.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find(path: Path) -> Heir | None:
    """The deed of the gateway that is there; None where there is none.

    Raises KernelError for one that does not answer, or is not ours.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(ANSWER)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise KernelError(f"{path}: {error.strerror or 'nobody answers'}") from None
    if peer(connection).uid not in (0, os.geteuid()):
        connection.close()
        raise KernelError(f"{path}: belongs to user {peer(connection).uid}; look at it and remove it")
    return Heir(connection)


def shape() -> str:
    """What a configuration consists of in this version: two that say the same understand each other."""
    kinds = (
        spec.Config, spec.Gateway, spec.Timeouts, spec.Real, spec.Server, spec.Virtual, spec.Strict,
        spec.Target, spec.Numbers, spec.Leaving,
    )  # fmt: skip
    text = repr([(kind.__name__, [(each.name, str(each.type)) for each in fields(kind)]) for kind in kinds])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _configuration(file: int) -> Config:
    data = os.pread(file, os.fstat(file).st_size, 0)
    config = pickle.loads(data)  # noqa: S301  nobody but root can write there
    if not isinstance(config, Config):
        raise ValueError("no configuration")
    return config
