"""Which server a new connection goes to (figs 7A, 7B and 8).

Owns the order of the questions: is the client bound to a server; is a failed one to be tested;
whom does the desired scheduler choose; is that one starting up, so that the startup scheduler
decides; is there a backup. Servers that did not take this client lately (`doubts`) come after all others,
the one longest ago first; but for the virtual server's backup, which is for when nobody can choose any.
And one more: could the replies be told apart (A5)?
"""

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from nfqlb.core.connection import Connection
from nfqlb.core.doubts import NOBODY, Doubts
from nfqlb.core.failure import FailureWatch, testable_by_bound
from nfqlb.core.fpa import FpaTable
from nfqlb.core.health import Ditch
from nfqlb.core.keys import client_of, reverse_key
from nfqlb.core.server import Link, RealServer, VirtualServer
from nfqlb.core.verdict import Drop

Allowed = Callable[[Link], bool]
_Shunned = Container[RealServer | Link | None]

STICKY = "sticky"
TEST = "test"
BACKUP = "backup"


class Choice(NamedTuple):
    """A link, and what chose it: `STICKY`, `TEST`, `BACKUP` or the name of a scheduler."""

    link: Link
    by: str


#: What was learned on the way to a choice, for the record of decisions: the server that the client's sticky
#: entry named, the link that the startup scheduler's took the place of, the positions of links whose
#: replies could not have been told apart from another connection's, what the shadow would have taken, and
#: whom the client doubts.
Findings = tuple[RealServer | None, Link | None, Sequence[int], Link | None, Mapping[RealServer, Ditch]]
NOTHING_FOUND: Findings = (None, None, (), None, NOBODY)


class Selection:
    """Selects for one director. It changes nothing but the schedulers' own turns.

    `found` is what it learned on the way to its last choice, `outbound` the key of the replies under it.
    """

    def __init__(
        self, fpas: FpaTable, watch: FailureWatch, outbound: Mapping[bytes, Connection], doubts: Doubts
    ) -> None:
        self.found = NOTHING_FOUND
        self.outbound = b""
        self._fpas = fpas
        self._doubts = doubts
        self._watch = watch
        self._outbound = outbound

    def choose(
        self, virtual: VirtualServer, key: bytes, now: float, *, avoid: RealServer | None = None
    ) -> Choice | Drop:
        """The link for a connection with this inbound key, or why there is none.

        `avoid` is a server that has not answered it. Where no link's replies could be told apart
        from another connection's but for one that has ended, that one's link is returned: it must
        make way.
        """
        self.found = NOTHING_FOUND
        choice = self._prefer(virtual, client_of(key), now, avoid)
        if choice is None:
            return Drop.NO_SERVER
        self.outbound = reverse_key(key, choice.link)
        if self.outbound not in self._outbound:
            return choice
        choice = self._apart(virtual, key, now, avoid)
        if choice is None:
            return Drop.COLLISION
        self.outbound = reverse_key(key, choice.link)
        return choice

    def _prefer(
        self, virtual: VirtualServer, client: bytes, now: float, avoid: RealServer | None
    ) -> Choice | None:
        link = self._bound(virtual, client, now)
        doubted = NOBODY
        if virtual.doubting and self._doubts.about:
            doubted = self._doubts.of(virtual, client, now)
            self.found = (*self.found[:4], doubted) if doubted else self.found
        plain = avoid is None and not doubted
        if link is not None and (plain or (link.real is not avoid and link.real not in doubted)):
            return Choice(link, TEST if link.real.down else STICKY)
        test = self._watch.test_due(virtual, now)
        if plain:
            choice = self._scheduled(virtual, client, now, None) if test is None else Choice(test, TEST)
        elif others := [real for real in doubted if real is not avoid]:
            choice = self._in_doubt(virtual, client, now, avoid, others, test, link)
        else:
            choice = self._scheduled(virtual, client, now, _but(avoid))
        if choice is not None:
            return choice
        # who has waited in vain already waits for a test only where there is no other server
        test = test or self._watch.backup_due(virtual, now)
        return Choice(test, TEST) if test is not None and test.real is not avoid else None

    def _in_doubt(
        self, virtual: VirtualServer, client: bytes, now: float, avoid: RealServer | None,
        doubted: Sequence[RealServer], test: Link | None, bound: Link | None,
    ) -> Choice | None:  # fmt: skip
        """The choice for a client that doubts these servers, to one of which it may be bound."""
        choice = self._scheduled(virtual, client, now, _but(avoid, virtual.backup, *doubted))
        if choice is None and test is not None and test.real is not avoid:
            choice = Choice(test, TEST)
        for real in doubted:
            if choice is not None:
                return choice
            if bound is not None and bound.real is real:
                return Choice(bound, STICKY)
            choice = self._scheduled(virtual, client, now, partial(_leads_to, real, virtual.backup))
        return choice or self._scheduled(virtual, client, now, _but(avoid))

    def _bound(self, virtual: VirtualServer, client: bytes, now: float) -> Link | None:
        """The sticky entry's link, if its server may still take this client (R132, A7)."""
        if virtual.scope is None:
            return None
        real = self._fpas.find(virtual.scope, client, now)
        if real is None:
            return None
        self.found = (real, None, (), None, NOBODY)
        if not (real.admits_sticky or testable_by_bound(virtual, real, now)):
            return None
        links = virtual.links_to(real)
        return links[0] if links else None

    def _scheduled(
        self, virtual: VirtualServer, client: bytes, now: float, allowed: Allowed | None
    ) -> Choice | None:
        """The desired scheduler's choice, the startup scheduler's in its stead, or the backup (R133-R139)."""
        startup = virtual.startup
        if startup is not None and startup.before and startup.acts(None, now):
            other = startup.scheduler.choose(client, virtual.last, allowed)
            if other is not None:
                return Choice(other, startup.scheduler.name)
        scheduler = virtual.scheduler
        scheduler.now = now
        link = scheduler.choose(client, virtual.last, allowed)
        if link is None:
            backup = virtual.backup
            usable = backup is not None and backup.real.admits_new and (allowed is None or allowed(backup))
            return Choice(backup, BACKUP) if backup is not None and usable else None
        if startup is not None and not startup.before and startup.acts(link, now):
            other = startup.scheduler.choose(client, virtual.last, allowed)
            if other is not None:
                self.found = (self.found[0], link, self.found[2], None, self.found[4])
                return Choice(other, startup.scheduler.name)
        if virtual.shadow is not None:
            self.found = (*self.found[:3], virtual.shadow.choose(client, now, allowed), self.found[4])
        return Choice(link, scheduler.name)

    def _apart(
        self, virtual: VirtualServer, key: bytes, now: float, avoid: RealServer | None
    ) -> Choice | None:
        """A link whose replies can be told apart; overrides stickiness, and at last doubts."""
        crossed: list[int] = []
        doubted = self.found[4]
        self.found = (self.found[0], None, crossed, None, doubted)

        def apart(link: Link, told: bool) -> bool:
            if not told:
                crossed.append(link.position)
            return told

        def free(shunned: _Shunned, link: Link) -> bool:
            told = reverse_key(key, link) not in self._outbound
            return _passes(shunned, link) and apart(link, told)

        def ended(shunned: _Shunned, link: Link) -> bool:
            other = self._outbound.get(reverse_key(key, link))
            return _passes(shunned, link) and apart(link, other is not None and other.state.ended)

        shunned = ((avoid, virtual.backup, *doubted), (avoid,)) if doubted else ((avoid,),)
        for allowed in (partial(told, servers) for servers in shunned for told in (free, ended)):
            crossed.clear()
            choice = self._scheduled(virtual, client_of(key), now, allowed)
            if choice is not None:
                return choice
        return None


def _passes(shunned: _Shunned, link: Link) -> bool:
    return link.real not in shunned and link not in shunned


def _but(*shunned: RealServer | Link | None) -> Allowed:
    """Any link but these, and those to these servers."""
    return partial(_passes, shunned)


def _leads_to(real: RealServer, backup: Link | None, link: Link) -> bool:
    return link.real is real and link is not backup
