"""A real terminal for tests: a program on a pty, and pyte, which says what a person would see."""

import errno
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyte

import nfqlb

PATIENCE = 20.0  # seconds until a screen must say what is waited for
UTF8 = {"LANG": "C.UTF-8", "TERM": "xterm-256color"}


class Screen:
    """The terminal's user: sees the screen, presses keys, changes the size; `idle` is called meanwhile."""

    def __init__(self, width: int, height: int, idle: Callable[[], None]) -> None:
        self.display = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.display)
        self.written = bytearray()
        self._idle = idle
        self.fd, self.slave = os.openpty()
        self.resize(width, height)
        self.modes = termios.tcgetattr(self.slave)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        """Start the program as the leader of a session of its own, with this terminal as its own."""
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TZ")}
        self.process = subprocess.Popen(
            argv,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**kept, "PYTHONPATH": str(Path(nfqlb.__file__).parents[1]), **environment},
            start_new_session=True,
            preexec_fn=_own_terminal,
        )

    @property
    def lines(self) -> list[str]:
        """What the screen says."""
        return [line.rstrip() for line in self.display.display]

    @property
    def text(self) -> str:
        """The same in one."""
        return "\n".join(self.lines)

    def row(self, begin: str) -> str:
        """The one line that holds a text."""
        found = [line for line in self.lines if begin in line]
        assert len(found) == 1, f"{begin!r} in {len(found)} lines of\n{self.text}"
        return found[0]

    def resize(self, width: int, height: int) -> None:
        """Another size; the kernel tells the program by SIGWINCH."""
        self.display.resize(height, width)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self.fd, keys.encode())

    def look(self, seconds: float = 0.02) -> bool:
        """Take in what was written, for at most so long; whether there was anything."""
        self._idle()
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self.written += data
        self._stream.feed(data)
        return True

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until something is so, and the picture in which it is has come whole."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"no {what or condition} in\n{self.text}"
            self.look()
        while self.look(0.05):
            pass

    def shows(self, *texts: str) -> None:
        """Wait until all these texts are on the screen."""
        self.until(lambda: all(text in self.text for text in texts), f"{texts!r}")

    def hides(self, text: str) -> None:
        """Wait until a text is not on the screen any more."""
        self.until(lambda: text not in self.text, f"screen without {text!r}")

    def ended(self) -> int:
        """The program's exit status, once it has ended and all it wrote was read."""
        assert self.process is not None
        process = self.process
        self.until(lambda: process.poll() is not None, "end of the program")
        for _ in range(3):
            self.look()
        return process.returncode

    def close(self) -> None:
        """End the program, if it has not, and give the terminal up."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self.slave)


def _own_terminal() -> None:
    """In the new process: stdin is its terminal, and SIGHUP ends it, also where tests run by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def top(
    socket: Path,
    *words: str,
    size: tuple[int, int] = (120, 40),
    idle: Callable[[], None] = lambda: None,
    ready: str = "sticky",
    **environment: str,
) -> Iterator[Screen]:
    """`nfqlb top` on a terminal of this size, once it says that it is `ready`: earlier keys are lost."""
    screen = Screen(*size, idle)
    try:
        argv = [sys.executable, "-m", "nfqlb", "top", "--socket", str(socket), *words]
        screen.start(argv, {**UTF8, **environment})
        screen.shows(ready)
        yield screen
    finally:
        screen.close()
