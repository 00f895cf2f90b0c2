"""What nfqlb must remember of a network namespace while it is changed, and who is changing it.

Owns the files under `/run/nfqlb`: one lock, one record and one configuration for each network namespace, for
several share a machine's `/run`. Record and configuration outlive a crash; the lock does not.
"""

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.procfs import Namespace, namespace

DIRECTORY = Path("/run/nfqlb")


@dataclass(frozen=True, slots=True)
class Change:
    """A kernel setting that was changed: its path under /proc/sys, the value before, the value set."""

    path: str
    before: str
    value: str


class Record:
    """The changes not yet put back, in a file of mode 0600 that is replaced as a whole.

    A record of an earlier boot, or of a namespace that is gone and whose number was given out again,
    counts as empty.
    """

    def __init__(self, directory: Path = DIRECTORY, where: Namespace | None = None) -> None:
        self._where = where or namespace()
        self._file = directory / f"net-{self._where.inode}.json"

    def read(self) -> list[Change]:
        """The changes, oldest first. Raises KernelError for a file that is not a record."""
        try:
            text = self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KernelError(f"{self._file}: cannot be read: {error.strerror}; run as root") from None
        try:
            record = json.loads(text)
            changes = [Change(entry["path"], entry["before"], entry["value"]) for entry in record["changes"]]
            mine = (record["cookie"], record["boot"]) == (self._where.cookie, self._where.boot)
        except (ValueError, KeyError, TypeError):
            raise KernelError(f"{self._file}: not a record of nfqlb; look at it and delete it") from None
        return changes if mine else []

    def write(self, changes: list[Change]) -> None:
        """Replaces the record; none left: the file goes. Raises KernelError where that is impossible."""
        try:
            if changes:
                self._replace(changes)
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            raise KernelError(f"{self._file}: cannot be written: {error.strerror}") from None

    def _replace(self, changes: list[Change]) -> None:
        entries = [
            {"path": change.path, "before": change.before, "value": change.value} for change in changes
        ]
        text = json.dumps({"cookie": self._where.cookie, "boot": self._where.boot, "changes": entries})
        _replace(self._file, text + "\n")


class Kept:
    """The text of the configuration that a gateway runs with, in a file of mode 0600, until a clean stop.

    For a next start whose own file cannot be used. One of an earlier boot, or of a namespace that is gone,
    counts as none.
    """

    def __init__(self, directory: Path = DIRECTORY, where: Namespace | None = None) -> None:
        where = where or namespace()
        self.file = directory / f"net-{where.inode}.toml"
        self._mark = f"# what nfqlb runs with in the network namespace {where.cookie} of boot {where.boot}"

    def read(self) -> str | None:
        """The text; None where there is none that can be read."""
        try:
            mark, _, text = self.file.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return None
        return text if mark == self._mark else None

    def write(self, text: str) -> None:
        """Replaces it as a whole. Raises KernelError where that is impossible."""
        try:
            _replace(self.file, f"{self._mark}\n{text}")
        except OSError as error:
            raise KernelError(f"{self.file}: cannot be written: {error.strerror}") from None

    def remove(self) -> list[str]:
        """It is of no use any more; a line where there was one. Raises KernelError."""
        try:
            self.file.unlink()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KernelError(f"{self.file}: cannot be removed: {error.strerror}") from None
        return [f"{self.file} removed"]


class Claim:
    """Holds a network namespace for one nfqlb, until `release`, the end of `with`, or of the process.

    A forked child inherits the lock; one that outlives its parent has to `abandon` it. Raises KernelError,
    naming the owner's process id, where another holds it, and where there is no room for ours.
    """

    def __init__(self, directory: Path = DIRECTORY, where: Namespace | None = None) -> None:
        self._file = lock_file(directory, where)
        self._descriptor = self._take()
        try:
            os.truncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            self.release()
            raise KernelError(f"{self._file}: cannot be written: {error.strerror}") from None

    def release(self) -> None:
        """Gives the namespace back. May be called twice."""
        if self._descriptor >= 0:
            self._file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def abandon(self) -> None:
        """In a forked child: the namespace is the parent's, and nobody's when that is gone."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _take(self) -> int:
        """The locked descriptor. A file that its owner deleted before we locked it is not the lock."""
        while True:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600)
            except OSError as error:
                raise KernelError(f"{self._file}: cannot be opened: {error.strerror}; run as root") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_ino == os.stat(self._file).st_ino:  # noqa: PTH116 - as fstat
                    return descriptor
            except BlockingIOError:
                process = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
                os.close(descriptor)
                raise KernelError(
                    f"another nfqlb, process {process}, serves this network namespace; stop that one first, "
                    "or take over from it: nfqlb run --take-over"
                ) from None
            except FileNotFoundError:
                pass
            os.close(descriptor)


def owner(directory: Path = DIRECTORY, where: Namespace | None = None) -> int | None:
    """The process id of the nfqlb that holds this network namespace, None where there is none."""
    with contextlib.suppress(OSError), lock_file(directory, where).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read(20).strip()
            return int(text) if text.isdigit() else 0
    return None


def _replace(file: Path, text: str) -> None:
    """Put a file of mode 0600 in the place of another. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
    fresh.replace(file)


def lock_file(directory: Path, where: Namespace | None) -> Path:
    """The file whose lock says that a network namespace is held."""
    return directory / f"net-{(where or namespace()).inode}.lock"
