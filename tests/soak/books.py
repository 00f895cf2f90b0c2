"""What visitors, servers and the gateway have counted, and whether it agrees. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.soak.visitors import Loss

UNKNOWN = "?"
"""In place of a server: the client ended before it knew."""
Link = tuple[str, str]
"""A virtual server and one of its servers."""


@dataclass(slots=True)
class Counts:
    """What all visitors have counted; see `visitors.Account`. `slowest` is in seconds."""

    opened: Counter[Link] = field(default_factory=Counter)
    held: Counter[Link] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    downloads: int = 0
    aborted: int = 0
    slowest: float = 0.0

    @classmethod
    def of(cls, accounts: Iterable[Mapping[str, Any]]) -> "Counts":
        """The sum of several clients' accounts, as they write them."""
        whole = cls()
        for account in accounts:
            whole.opened.update(_links(account["opened"]))
            whole.held.update(_links(account["held"]))
            whole.pages.update(account["pages"])
            whole.downloads += account["downloads"]
            whole.aborted += account["aborted"]
            whole.slowest = max(whole.slowest, account["slowest"])
        return whole


def _links(counted: Mapping[str, int]) -> Counter[Link]:
    found: Counter[Link] = Counter()
    for words, count in counted.items():
        place, server = words.split()
        found[place, server] += count
    return +found


@dataclass(frozen=True, slots=True)
class Taken:
    """A server that was taken away, with the connections that it had: from when until when (s)."""

    server: str
    begun: float
    ended: float


@dataclass(frozen=True, slots=True)
class Burst:
    """SYNs from everywhere at a virtual server: from when until when (s)."""

    place: str
    begun: float
    ended: float


@dataclass(slots=True)
class Ledger:
    """What the gateway has counted: connections of each link, now and ever; of each virtual server, ever."""

    now: Counter[Link]
    ever: Counter[Link]
    totals: Counter[str]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "Ledger":
        """From the rows of `virtuals`. A server of IPv6 is the machine that it is: `web1-6` is `web1`."""
        ledger = cls(Counter(), Counter(), Counter())
        for row in rows:
            ledger.totals[row["name"]] = row["total"]
            for link in row["servers"]:
                key = row["name"], link["real"].removesuffix("-6")
                ledger.now[key] += link["connections"]
                ledger.ever[key] += link["total"]
        return ledger


def at_rest(held: Counter[Link], ledger: Ledger) -> list[str]:
    """What is wrong while nothing is open but what visitors hold."""
    links = held.keys() | ledger.now.keys()
    return [
        f"{link}: {held[link]} connections are held, the gateway has {ledger.now[link]}"
        for link in sorted(links)
        if held[link] != ledger.now[link]
    ]


def after_calm(opened: Counter[Link], before: Ledger, after: Ledger) -> list[str]:
    """What is wrong after a time in which nothing was done to anybody: all has to agree, link by link.

    Connections whose client ended before it knew the server are some of the virtual server's.
    """
    wrong = []
    for place in sorted(after.totals):
        counted = after.totals[place] - before.totals[place]
        seen = sum(count for (name, _), count in opened.items() if name == place)
        if counted != seen:
            wrong.append(f"{place}: {seen} connections were opened, the gateway counted {counted}")
        spare = opened[place, UNKNOWN]
        for link in sorted(key for key in after.ever if key[0] == place):
            counted = after.ever[link] - before.ever[link]
            spare -= counted - opened[link]
            if counted < opened[link]:
                wrong.append(f"{link}: {opened[link]} connections were opened, the gateway counted {counted}")
        if spare:
            wrong.append(f"{place}: {spare} connections of a server that nobody knows")
    return wrong


def after_storm(opened: Counter[Link], before: Ledger, after: Ledger) -> list[str]:
    """What is wrong after a time of faults in which no process of the gateway died.

    There may be more than the visitors opened, as of damaged packets and servers that refused, never less.
    """
    wrong = []
    for place in sorted(after.totals):
        counted = after.totals[place] - before.totals[place]
        seen = sum(count for (name, server), count in opened.items() if name == place and server != UNKNOWN)
        if counted < seen:
            wrong.append(f"{place}: {seen} connections were opened, the gateway counted {counted}")
    return wrong


def by_servers(pages: Counter[str], served: Mapping[str, int], *, exact: bool) -> list[str]:
    """Where servers have answered other requests than the visitors got answers to.

    Not `exact`: of those that a fault has cut off the server alone may know.
    """
    return [
        f"{server}: {pages[server]} pages arrived, the server sent {served[server]}"
        for server in sorted(served)
        if served[server] < pages[server] or (exact and served[server] != pages[server])
    ]


def given_up(losses: Iterable[Loss], bursts: Sequence[Burst]) -> list[Loss]:
    """Losses of connections that were half-open in a burst: at its `synguard` the oldest makes room.

    Such a client has seen the server's SYN-ACK, but the gateway not yet its ACK; an answer it never had.
    """
    return [
        loss
        for loss in losses
        if (loss.what, loss.server) == ("connection", "")
        and any(one.place == loss.place and one.begun <= loss.begun <= one.ended for one in bursts)
    ]


def unexcused(losses: Iterable[Loss], taken: Sequence[Taken]) -> list[Loss]:
    """Losses that no server's being taken away explains.

    It explains those that had this server, and those that had none yet, where it was away between the last
    moment at which all was well and the one at which the visitor learned of the loss.
    """
    return [
        loss
        for loss in losses
        if not any(
            loss.server in ("", one.server) and one.begun <= loss.at and loss.begun <= one.ended
            for one in taken
        )
    ]
