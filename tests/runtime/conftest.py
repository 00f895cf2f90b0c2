"""A selector loop that a test turns by hand, as the supervisor does: no thread, no sleep, no port."""

import selectors
from collections.abc import Callable, Iterator

import pytest


class Loop:
    """Calls what the selector's keys hold, until nothing is ready any more."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.now = 1000.0

    def clock(self) -> float:
        """A clock that stands until the test moves it."""
        return self.now

    def turn(self, *, wait: float = 0.0) -> bool:
        """One round; whether anything was ready. Waits `wait` seconds at most for it."""
        ready = self.selector.select(wait)
        for key, mask in ready:
            key.data(mask)
        return bool(ready)

    def settle(self, rounds: int = 100_000) -> None:
        """Turn until nothing is ready."""
        for _ in range(rounds):
            if not self.turn():
                return
        raise AssertionError("the loop does not come to rest")

    def run_until(self, done: Callable[[], bool]) -> None:
        """Turn while something outside this thread goes on."""
        while not done():
            self.turn(wait=0.02)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.selector.close()
