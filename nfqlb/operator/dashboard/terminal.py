"""The terminal: taken over while the dashboard is on it, and as it was before after every way of ending.

Owns the terminal's modes, the other screen, and the signals. `Terminal` is a context: inside it keys come one
by one and unechoed, the cursor is hidden, and the other screen is shown. However the context is left, all is
put back; so it is while the program is stopped by Ctrl-Z. A signal is only noted by its handler and acted
upon in `woken`, between two pictures, so that none is cut in the middle.
"""

import contextlib
import os
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Mapping, MutableMapping
from types import FrameType, TracebackType
from typing import IO

from rich.console import Console, ConsoleDimensions
from rich.segment import Segment

#: Signals that end the program; SIGKILL reaches nobody.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
NOTED = (*ENDING, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
SMALLEST = (10, 4)
USUAL = (80, 24)
_INPUT = 0  # where termios has the input modes

Handler = Callable[[int, FrameType | None], None] | int | None


class EndedError(Exception):
    """A signal has come that ends the program, or the terminal has gone, which is SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Terminal:
    """The terminal behind `source` and `screen`: stdin and stdout. `wakeup` is readable after a signal."""

    def __init__(self, source: IO[str], screen: IO[str]) -> None:
        self.source = source.fileno()
        self._screen = screen.fileno()
        self._console = Console(file=screen, force_terminal=True, markup=False, emoji=False, highlight=False)
        self._before: list[int | list[bytes | int]] | None = None
        self._handlers: dict[int, Handler] = {}
        self._shown: list[list[Segment]] = []
        self._size = (0, 0)
        self._signals: set[int] = set()
        self.wakeup, self._wake = socket.socketpair()
        for end in (self.wakeup, self._wake):
            end.setblocking(False)

    def __enter__(self) -> "Terminal":
        self._old_wakeup = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            for number in NOTED:
                self._handlers[number] = signal.signal(number, self._note)
            if self._handlers[signal.SIGHUP] is signal.SIG_IGN:  # nohup: that is somebody's wish
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            self._take()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, EndedError):  # more of the same would only spoil its last moments
            self._handlers.update(dict.fromkeys(ENDING, signal.SIG_IGN))
        self._leave()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines now."""
        try:
            width, height = os.get_terminal_size(self._screen)
        except OSError:
            width = height = 0
        if width <= 0 or height <= 0:  # a serial line that nobody has told its size
            width, height = USUAL
        return max(width, SMALLEST[0]), max(height, SMALLEST[1])

    def read(self) -> bytes:
        """What keys have sent. Raises EndedError where there is no terminal any more."""
        try:
            data = os.read(self.source, 4096)
        except OSError:
            data = b""
        if not data:
            raise EndedError(signal.SIGHUP)
        return data

    def woken(self) -> bool:
        """Act upon signals; whether the program had been stopped. Raises EndedError where one ends it."""
        with contextlib.suppress(BlockingIOError):
            self.wakeup.recv(4096)
        self._end()
        signals, self._signals = self._signals, set()
        if signal.SIGTSTP in signals:
            self._stop()
        elif signal.SIGCONT in signals:  # it was stopped by SIGSTOP, and who knows what came meanwhile
            self._take()
        return bool(signals & {signal.SIGTSTP, signal.SIGCONT})

    def redraw(self) -> None:
        """Forget what is on the screen: the next picture is drawn whole."""
        self._shown = []

    def show(self, lines: list[list[Segment]], size: tuple[int, int]) -> None:
        """Put a picture of this size on the screen; only lines that have changed are written."""
        if size != self._size:
            self._size, self._shown = size, []
            self._console.size = ConsoleDimensions(*size)
        with self._console:
            if not self._shown:
                self._console.clear()
            for number, line in enumerate(lines):
                if number >= len(self._shown) or self._shown[number] != line:
                    self._console.update_screen_lines([line], 0, number)
        self._shown = lines

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.add(number)

    def _take(self) -> None:
        """Take the terminal over."""
        if self._before is None:
            self._before = termios.tcgetattr(self.source)
        tty.setcbreak(self.source)
        modes = termios.tcgetattr(self.source)
        modes[_INPUT] &= ~termios.IXON  # Ctrl-S would hold up the picture, and whoever waits for it to end
        termios.tcsetattr(self.source, termios.TCSADRAIN, modes)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        self.redraw()

    def _give_back(self) -> None:
        """Put the terminal back as it was, if it is still there."""
        before, self._before = self._before, None
        if before is None:
            return
        try:
            self._console.set_alt_screen(False)
            self._console.show_cursor(True)
        except OSError:
            self._lose()
        if self._is_behind():
            return  # the shell has its own modes by now, and whoever changes them from behind is stopped
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.source, termios.TCSADRAIN, before)

    def _is_behind(self) -> bool:
        """Whether another job has the terminal, as after a SIGSTOP."""
        try:
            return os.tcgetpgrp(self.source) != os.getpgrp()
        except OSError:  # it is not ours to have in that sense, or gone
            return False

    def _lose(self) -> None:
        """The terminal is gone: what is left to write goes nowhere, or Python would end with an error."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._screen)
        os.close(null)

    def _stop(self) -> None:
        """Ctrl-Z: stop, with the terminal as it was; take it over again when the program goes on."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._note)
        self._signals.discard(signal.SIGCONT)  # that was this
        self._end()  # before the terminal is taken, which is another job's perhaps
        self._take()

    def _end(self) -> None:
        """Raises EndedError where a signal has come that ends the program."""
        for number in ENDING:
            if number in self._signals:
                raise EndedError(number)

    def _leave(self) -> None:
        self._give_back()
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.wakeup.close()
        self._wake.close()


def interactive() -> bool:
    """Whether there is a terminal to draw on and to read keys from."""
    return (
        sys.stdin is not None
        and sys.stdin.isatty()
        and sys.stdout.isatty()
        and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    )


def knows_ascii_only(environment: Mapping[str, str], encoding: str | None) -> bool:
    """Whether a terminal shows nothing but ASCII, as far as the locale says.

    Python takes the locale C for UTF-8 and sets LC_CTYPE to C.UTF-8 then, which says nothing of the terminal.
    """
    known: MutableMapping[str, str] = dict(environment)
    if known.get("LC_CTYPE") == "C.UTF-8" and known.get("LANG", "") in ("", "C", "POSIX"):
        del known["LC_CTYPE"]
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := known.get(name))), "")
    said = (locale.partition(".")[2].partition("@")[0], encoding or "")
    return any(name.lower().replace("-", "") != "utf8" for name in said)
