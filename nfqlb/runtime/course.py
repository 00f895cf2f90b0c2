"""Things to be done one after the other, each of which takes a while, in a process that never waits.

Owns `Runner`. A course is a generator: it yields a step, which is begun, and goes on with what came of it, a
result or an exception, once that is told. Meanwhile the supervisor looks after everything else.
"""

from collections.abc import Callable, Generator

from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.protocol import JSON, ControlError

Done = Callable[[JSON], None]
Failed = Callable[[KernelError | ControlError], None]
Step = Callable[[Done, Failed], None]
"""Begins something, and calls one of the two, later or at once."""
Course = Generator[Step, JSON, None]


class Runner:
    """Runs one course at a time. `over` is called when one has ended, with the defect it ended by, if any."""

    def __init__(self, over: Callable[[Exception | None], None]) -> None:
        self._over = over
        self._course: Course | None = None

    @property
    def busy(self) -> bool:
        """Whether a course is under way."""
        return self._course is not None

    def run(self, course: Course) -> None:
        """Begin a course; none may be under way."""
        assert self._course is None
        self._course = course
        self._advance(lambda: next(course), course)

    def close(self) -> None:
        """Give up the one that is under way; it is not told of its end."""
        if self._course is not None:
            self._course.close()
            self._course = None

    def _advance(self, go_on: Callable[[], Step], course: Course) -> None:
        if course is not self._course:
            return  # closed meanwhile
        try:
            step = go_on()
        except StopIteration:
            self._end(None)
        except Exception as error:  # noqa: BLE001  whoever runs it says what a defect is to come to
            self._end(error)
        else:
            step(
                lambda result: self._advance(lambda: course.send(result), course),
                lambda error: self._advance(lambda: course.throw(error), course),
            )

    def _end(self, error: Exception | None) -> None:
        self._course = None
        self._over(error)
