"""The dashboard's loop: keys and answers in, pictures out, all in one thread and never waiting for an answer.

A picture is drawn when something has changed, and once a second at least, as ages go on.
"""

import time
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from nfqlb.operator.dashboard.actions import Explain, Order, press
from nfqlb.operator.dashboard.asking import Asking
from nfqlb.operator.dashboard.keys import Keys
from nfqlb.operator.dashboard.state import State
from nfqlb.operator.dashboard.terminal import Terminal
from nfqlb.operator.dashboard.views.frame import frame

ESCAPE = 0.05  # seconds after which an escape byte is a key
BLINK = 1.0  # seconds between two pictures at most
SETTLE = 0.02  # seconds that answers are waited for before a picture: those to one question come together


class Dashboard:
    """The gateway at `path` on a terminal. `state` says how it was opened."""

    def __init__(self, path: Path, terminal: Terminal, state: State) -> None:
        self._state = state
        self._terminal = terminal
        self._selector = DefaultSelector()
        self._asking = Asking(path, self._selector, state, self._changed)
        self._keys = Keys()
        self._draw_at = 0.0
        self._left = False

    def run(self) -> None:
        """Show the gateway until the user leaves. Raises EndedError where a signal ends it."""
        with self._selector:
            self._selector.register(self._terminal.source, EVENT_READ, self._typed)
            self._selector.register(self._terminal.wakeup, EVENT_READ, self._woken)
            try:
                while not self._left:
                    self._step()
            finally:
                self._asking.close()

    def _step(self) -> None:
        """Do what is due, then wait for what comes next."""
        self._asking.tick()
        if time.monotonic() >= self._draw_at:
            self._draw()
        until = min(self._asking.due, self._draw_at) - time.monotonic()
        if self._keys.waiting:
            until = min(until, ESCAPE)
        ready = self._selector.select(max(0.0, until))
        for key, mask in ready:
            key.data(mask)
        if not ready and self._keys.waiting:
            self._press(self._keys.flush())

    def _draw(self) -> None:
        self._state.now = time.time()
        size = self._terminal.size
        self._terminal.show(frame(self._state, *size), size)
        self._draw_at = time.monotonic() + BLINK
        self._asking.histories()

    def _changed(self) -> None:
        """An answer came: a picture is due soon."""
        self._draw_at = min(self._draw_at, time.monotonic() + SETTLE)

    def _woken(self, _mask: int) -> None:
        if self._terminal.woken():
            self._asking.pace()  # the gateway does not wait for who reads nothing
        self._draw_at = 0.0

    def _typed(self, _mask: int) -> None:
        self._press(self._keys.feed(self._terminal.read()))

    def _press(self, keys: list[str]) -> None:
        self._state.now = time.time()
        for key in keys:
            for deed in press(self._state, key):
                if isinstance(deed, Order):
                    self._asking.order(deed)
                elif isinstance(deed, Explain):
                    self._asking.explain(deed)
                else:
                    self._do(deed.what)
            self._draw_at = 0.0

    def _do(self, what: str) -> None:
        if what == "quit":
            self._left = True
        elif what == "redraw":
            self._terminal.redraw()
        elif what == "pace":
            self._asking.pace()
        else:
            self._asking.refresh()
