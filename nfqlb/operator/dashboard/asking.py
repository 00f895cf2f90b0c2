"""What the dashboard asks the gateway, and what it makes of the answers.

Owns the two conversations: one for snapshots, which the gateway has at hand, and one for everything that its
worker has to make first, so that a worker that is away does not hide that it is. Answers go into the state.
"""

import time
from collections.abc import Callable
from pathlib import Path
from selectors import BaseSelector

from nfqlb.operator import change, story
from nfqlb.operator.dashboard import model, rows
from nfqlb.operator.dashboard.actions import Explain, Order
from nfqlb.operator.dashboard.link import Feed, Link, Outcome
from nfqlb.operator.dashboard.series import Key
from nfqlb.operator.dashboard.state import PACES, Fetch, Page, State, Told
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject

HISTORIES = 8  # asked for at a time; the rest of what is in sight follows with the next picture


class Asking:
    """Asks the gateway at `path` for what `state` needs; `changed` is called when an answer changed it."""

    def __init__(self, path: Path, selector: BaseSelector, state: State, changed: Callable[[], None]) -> None:
        self._state = state
        self._changed = changed
        self._link = Link(path, selector, time.monotonic)
        self._feed = Feed(path, selector, self._took, time.monotonic, state.pace)
        self._lists: set[str] = set()
        self._histories: set[Key] = set()
        self._held: JSON = None  # the latest snapshot of a pause

    @property
    def due(self) -> float:
        """When `tick` has something to do next, in monotonic seconds."""
        return self._feed.due

    def tick(self) -> None:
        """Ask what it is time for, and give up what is not answered."""
        self._link.tick()
        self._feed.tick()

    def close(self) -> None:
        """Hang up."""
        self._link.close()
        self._feed.close()

    def pace(self) -> None:
        """The state's interval has changed."""
        self._feed.every(self._state.pace)

    def refresh(self) -> None:
        """Another page, or a pause is over: whatever is there or can be had at once."""
        held, self._held = self._held, None
        if held is not None and not self._state.paused:
            self._see(held)
        self._ask_lists()

    def histories(self) -> None:
        """Ask for the lines that the last picture would have drawn."""
        for key in self._state.series.missing(sorted(self._state.seen)):
            if self._state.lost or len(self._histories) >= HISTORIES:
                return
            if key not in self._histories:
                self._histories.add(key)
                self._ask_history(key)

    def order(self, order: Order) -> None:
        """Have something changed; what the gateway says of it becomes the message."""

        def said(result: JSON) -> None:
            self._state.say("; ".join(change.said(result)))
            if self._state.pace > PACES[0]:  # else the next one comes as soon
                self._feed.every(self._state.pace)

        self._ask(order.cmd, order.args, said)

    def explain(self, wanted: Explain) -> None:
        """Tell why a connection went where it went; of one whose decision is forgotten, what is known."""
        state = self._state
        about: JSONObject = {"connection": wanted.client, "virtual": wanted.virtual}
        client, port = story.asked(wanted.client)
        who = f"{wanted.client} to {wanted.virtual}"

        def decided(found: JSON) -> None:
            if found:
                state.told = Told(who, story.story(found, now=time.time()))
                return
            live: JSONObject = {"client": client, "virtual": wanted.virtual}
            self._ask("connections", live, connected)

        def connected(live: JSON) -> None:
            def stuck(sticky: JSON) -> None:
                state.told = Told(who, story.nothing_kept(who, live, sticky, port))

            self._ask("sticky", {"client": client}, stuck)

        self._ask("decisions", {**about, "limit": 1}, decided)

    def _took(self, outcome: Outcome) -> None:
        """A snapshot came, or why there is none."""
        if isinstance(outcome, ControlError):
            self._state.lost = str(outcome)
            self._state.series.forget()
        elif self._state.paused and self._state.snapshot is not None:
            self._state.lost, self._held = "", outcome
        else:
            self._see(outcome)
            self._ask_lists()
        self._changed()

    def _see(self, document: JSON) -> None:
        state = self._state
        try:
            state.snapshot = model.snapshot(document, state.snapshot)
        except ControlError as error:
            state.lost = str(error)
            return
        state.lost = ""
        state.series.add(state.snapshot)

    def _ask_lists(self) -> None:
        if not self._state.lost:
            for fetch in self._state.fetches():
                if fetch.cmd not in self._lists:
                    self._ask_list(fetch, self._state.page)

    def _ask_list(self, fetch: Fetch, page: Page) -> None:
        """Ask for a list of a page; it is of no use once the user has turned to another one."""
        self._lists.add(fetch.cmd)

        def came(outcome: Outcome) -> None:
            self._lists.discard(fetch.cmd)
            if self._state.page != page:
                self._ask_lists()
            elif isinstance(outcome, ControlError):
                raise outcome
            else:
                _keep(self._state, fetch.cmd, outcome)

        self._send(fetch.cmd, fetch.args, came)

    def _ask_history(self, key: Key) -> None:
        of, name = key
        args: JSONObject = {"of": of}
        if name:
            args["name"] = name

        def came(outcome: Outcome) -> None:
            self._histories.discard(key)
            if not isinstance(outcome, ControlError):
                self._state.series.fill(key, outcome)
            elif outcome.code == "bad-argument":  # gone since, or too new: it has none
                self._state.series.fill(key, {})

        self._send("history", args, came)

    def _ask(self, cmd: str, args: JSONObject, then: Callable[[JSON], None]) -> None:
        """Ask for something that the user waits for: a refusal becomes the message."""

        def came(outcome: Outcome) -> None:
            if isinstance(outcome, ControlError):
                raise outcome
            then(outcome)

        self._send(cmd, args, came)

    def _send(self, cmd: str, args: JSONObject, then: Callable[[Outcome], None]) -> None:
        """Ask; a ControlError that `then` raises becomes the message."""

        def came(outcome: Outcome) -> None:
            try:
                then(outcome)
            except ControlError as error:
                self._state.say(str(error))
            self._changed()

        self._link.ask(cmd, args, came)


def _keep(state: State, cmd: str, document: JSON) -> None:
    """Put the rows of a list where they are drawn from."""
    if cmd == "connections":
        state.connections = rows.connections(document)
    elif cmd == "failures":
        state.failures = rows.failures(document)
    elif cmd == "events":
        state.events = rows.events(document)
    else:
        state.decisions = rows.decisions(document)
