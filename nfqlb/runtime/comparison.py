"""Another configuration, compared with what runs (`nfqlb diff`, `nfqlb rules verify`): nothing is changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nfqlb.config import difference, transition
from nfqlb.core.spec import Config
from nfqlb.runtime import views
from nfqlb.runtime.by_hand import by_hand
from nfqlb.runtime.course import Step
from nfqlb.runtime.desk import Desk
from nfqlb.runtime.handover import Reading
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Request


class Looks(Protocol):
    """What is looked at in the kernel (`hands.Hands`)."""

    def findings(self, before: Config, after: Config) -> Step:
        """What stands against running `after` on this machine and did not before: lists of level and text."""

    def verified(self, config: Config) -> Step:
        """How the rules in place differ from those of a configuration, a line each."""


class Comparison:
    """Answers `diff` and `verify`.

    `running` says what is in force: what the file said, and what still drains. `read` reads a file, the
    gateway's own for None, and raises ControlError. `room` is how many connections there can be at most.
    """

    def __init__(
        self,
        desk: Desk,
        kernel: Looks,
        running: Callable[[], Config],
        read: Callable[[Path | None], Reading],
        *,
        room: int,
    ) -> None:
        self._desk = desk
        self._kernel = kernel
        self._running = running
        self._read = read
        self._room = room

    def diff(self, request: Request) -> None:
        """What a reload would change, and what it, or a restart, would refuse and warn of."""
        wanted, _ = self._read(file_of(request))
        before = transition.without_leftovers(self._running())
        found = difference.compare(before, wanted)
        told: JSONObject = {
            "differences": [each.document() for each in found], "said": list(difference.lines(found))
        }  # fmt: skip

        def reply(rows: JSON) -> None:
            errors, warnings = judged(rows)
            told["refused"] = [*transition.refusals(self._running(), wanted, room=self._room), *errors]
            told["warnings"] = [*warnings]
            self._desk.fresh(
                request, lambda snapshot: request.reply({**told, "by_hand": by_hand(snapshot, wanted)})
            )

        self._kernel.findings(before, wanted)(
            reply, lambda error: request.refuse(ControlError("kernel", str(error)))
        )

    def verify(self, request: Request) -> None:
        """How the rules in place differ from those that the gateway needs now, for who has this file.

        What drains has rules as well, which no file tells of. None where another file is in force.
        """
        wanted, _ = self._read(file_of(request))
        if wanted != transition.without_leftovers(self._running()):
            request.reply(None)
            return
        self._kernel.verified(self._running())(
            request.reply, lambda error: request.refuse(ControlError("kernel", str(error)))
        )


def file_of(request: Request) -> Path | None:
    """The file that a request names; None for the gateway's own. Raises ControlError."""
    views.check_names(request.cmd, request.args, ("file",))
    name = request.args.get("file")
    if name is None:
        return None
    if not isinstance(name, str) or not name.startswith("/"):
        raise views.bad(f"file: {name!r} is no absolute path")
    return Path(name)


def judged(found: JSON) -> tuple[list[str], list[str]]:
    """Errors and warnings of what was found on this machine."""
    rows = [row for row in found if isinstance(row, list)] if isinstance(found, list) else []
    errors = [str(text) for level, text in rows if level == "error"]
    return errors, [str(text) for level, text in rows if level != "error"]
