"""A gateway for the dashboard's tests: a real control server whose answers were recorded from a real gateway.

`recorded.json` holds what a gateway of the demo said. The snapshot's time goes on and its queues' counters
grow; whatever a test is about it changes in `snapshot` before, or while the dashboard looks.
"""

import copy
import json
import time
from pathlib import Path
from selectors import DefaultSelector
from typing import Any

from nfqlb.runtime.control import Request, Server
from nfqlb.runtime.protocol import ControlError

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text("utf-8"))


def recorded() -> dict[str, Any]:
    """A snapshot of one's own to change: two virtual servers over three real ones."""
    snapshot: dict[str, Any] = copy.deepcopy(RECORDED["snapshot"])
    return snapshot


def many(number: int) -> dict[str, Any]:
    """A snapshot with so many real servers, `web1` and on, behind both virtual servers."""
    snapshot = recorded()
    real, link = snapshot["reals"][0], snapshot["virtuals"][0]["servers"][0]
    names = [f"web{each}" for each in range(1, number + 1)]
    snapshot["reals"] = [
        {**real, "name": name, "address": f"10.0.{each // 250}.{each % 250 + 1}", "connections": each % 100}
        for each, name in enumerate(names)
    ]
    for virtual in snapshot["virtuals"]:
        part = 1 / number
        virtual["connections"] = link["connections"] * number
        virtual["servers"] = [{**link, "real": name, "share": part, "fair_share": part} for name in names]
    return snapshot


class Gateway:
    """The gateway. `step` serves whoever asks; `orders` are what it was told to change."""

    def __init__(self, path: Path, snapshot: dict[str, Any] | None = None) -> None:
        self.path = path
        self.snapshot = snapshot or recorded()
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.empty = False  # whether no decision is kept
        self.refuses: ControlError | None = None
        self._watchers: list[tuple[Request, float]] = []
        self._selector = DefaultSelector()
        self._begun = time.time()
        self._server: Server | None = Server(path, self._selector, self._answer)

    def step(self) -> None:
        """Serve whoever asks, and whoever watches, without waiting."""
        for key, mask in self._selector.select(0):
            key.data(mask)
        now = time.monotonic()
        for number, (request, due) in enumerate(self._watchers):
            if now >= due and request.stream(self._now()):
                every = request.args["every"]
                assert isinstance(every, float)
                self._watchers[number] = (request, now + every)
                self.asked.append("snapshot")
        self._watchers = [each for each in self._watchers if not each[0].answered]

    def stop(self) -> None:
        """Go away: the socket and whoever is on it."""
        if self._server is not None:
            self._server.close()
        self._server = None

    def again(self) -> None:
        """Come back."""
        self._server = Server(self.path, self._selector, self._answer)

    def close(self) -> None:
        self.stop()
        self._selector.close()

    def _answer(self, request: Request) -> None:
        self.asked.append(request.cmd)
        if request.cmd == "watch":
            self._watchers.append((request, 0.0))
            return
        if request.cmd.startswith("set-"):
            self._order(request)
            return
        answer: Any = self._now() if request.cmd == "snapshot" else RECORDED.get(request.cmd)
        if request.cmd == "history":
            answer = self._history(request)
        elif request.cmd == "decisions" and self.empty:
            answer = []
        elif request.cmd == "decisions" and "connection" in request.args:
            answer = RECORDED["decisions"][:1]
        elif request.cmd == "failures":
            answer = []
        elif request.cmd == "summary":
            answer = {}
        if answer is None:
            raise ControlError("unknown-command", f"there is no command {request.cmd!r}")
        request.reply(answer)

    def _now(self) -> dict[str, Any]:
        passed = time.time() - self._begun
        uptime = self.snapshot["uptime_s"] + passed
        snapshot = {**self.snapshot, "at": round(self._begun + passed, 3), "uptime_s": uptime}
        snapshot["queues"] = [
            {**queue, "packets": queue["packets"] + 1000 * passed, "busy_s": queue["busy_s"] + 0.02 * passed}
            for queue in snapshot["queues"]
        ]
        return snapshot

    def _history(self, request: Request) -> dict[str, Any]:
        of, name = request.args["of"], request.args.get("name", "")
        names = [row["name"] for row in self.snapshot.get(f"{of}s", [])]
        if of != "gateway" and name not in names:
            raise ControlError("bad-argument", f"name: there is no {of} server {name!r}")
        return {**RECORDED["history"][of], "name": name}

    def _order(self, request: Request) -> None:
        if self.refuses is not None:
            raise self.refuses
        args: dict[str, Any] = dict(request.args)
        self.orders.append((request.cmd, args))
        rows = self.snapshot["reals" if request.cmd == "set-real" else "virtuals"]
        row = next(row for row in rows if row["name"] == args["name"])
        said = f"{args['name']}: weight {row.get('weight', 0):g} -> {args.get('weight', 0):g}"
        if "state" in args:
            said = f"{args['name']}: {row['state']} -> {args['state']} ({row['connections']} connections)"
        row.update({name: value for name, value in args.items() if name != "name"})
        request.reply({"said": [said]})
