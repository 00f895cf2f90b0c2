"""The operator's hand: what is set while the gateway runs, and what of it a successor takes over.

Owns what follows from an order: a setting or a weight takes effect on the next SYN; existing
connections go on in every state (R186). A server that leaves `out-of-service` comes back without its
sticky associations, from `maintenance` with them (A7). `in-service` also clears a failure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nfqlb.core.admission import ServerState
from nfqlb.core.chronicle import Chronicle, Kept, Kind, state_of
from nfqlb.core.doubts import Doubts
from nfqlb.core.failure import FailureWatch
from nfqlb.core.fpa import FpaTable
from nfqlb.core.health import Condition
from nfqlb.core.server import RealServer, VirtualServer


@dataclass(frozen=True, slots=True)
class Done:
    """What an order came to. States are what the server really is, which a setting need not change.

    `settings` and `weights` are before and after; a virtual server has no weight. `connections` is how
    many it has, `unbound` how many sticky entries were cleared.
    """

    name: str
    states: tuple[ServerState, ServerState]
    settings: tuple[ServerState, ServerState]
    weights: tuple[float, float] | None
    connections: int
    unbound: int = 0


class Operation:
    """Carries out orders in one director. Names must exist: KeyError."""

    def __init__(
        self, reals: Mapping[str, RealServer], virtuals: Sequence[VirtualServer], fpas: FpaTable,
        doubts: Doubts, watch: FailureWatch, chronicle: Chronicle,
    ) -> None:  # fmt: skip
        self._reals = reals
        self._virtuals: dict[str, VirtualServer] = {}
        self.follow(virtuals)
        self._fpas = fpas
        self._doubts = doubts
        self._watch = watch
        self._chronicle = chronicle

    def follow(self, virtuals: Sequence[VirtualServer]) -> None:
        """These are the virtual servers from now on."""
        self._virtuals = {virtual.spec.name: virtual for virtual in virtuals}

    def set_real(
        self, name: str, *, setting: ServerState | None = None, weight: float | None = None, now: float
    ) -> Done:
        """Give a real server a setting (one with `operator`), a weight (0 or more), or both (R039, A14)."""
        real = self._reals[name]
        state, before, was = real.state, real.setting, real.weight
        unbound = 0
        if weight is not None:
            real.weight = weight
        if setting is not None:
            if before is ServerState.OUT_OF_SERVICE and setting is not before:
                unbound = self._fpas.forget(real)
                real.bound_from = now
            real.setting = setting
        if setting is ServerState.IN_SERVICE:
            self._watch.cleared(real, now)
        real.changed(now)
        self._chronicle.real_changed(real, state, now, by_operator=True)
        return Done(
            name, (state, real.state), (before, real.setting), (was, real.weight), real.connections, unbound
        )

    def set_virtual(self, name: str, setting: ServerState) -> Done:
        """Put a virtual server in or out of service (R025, A26): out of it, it takes no new connection."""
        virtual = self._virtuals[name]
        state, before = state_of(virtual), virtual.setting
        virtual.setting = setting
        self._chronicle.virtual_set(virtual)
        return Done(name, (state, state_of(virtual)), (before, setting), None, virtual.connections)

    def clear_sticky(self, name: str | None, client: bytes | None, now: float) -> int | None:
        """Forget sticky entries: all, or a virtual server's (its group's), or a client's (packed address).

        Returns how many; None where that virtual server has no stickiness.
        """
        chosen = list(self._virtuals.values()) if name is None else [self._virtuals[name]]
        scopes = dict.fromkeys(virtual.scope for virtual in chosen if virtual.scope is not None)
        if name is not None and not scopes:
            return None
        cleared = sum(self._fpas.clear(scope, client) for scope in scopes)
        for virtual in self._virtuals.values():
            if virtual.scope in scopes:
                self._doubts.clear(virtual, client)
        if client is None:
            for virtual in self._virtuals.values():
                if virtual.scope in scopes:
                    virtual.bound_from = now
                    self._chronicle.virtual_set(virtual)
        return cleared

    def restore(self, kept: Kept, now: float) -> bool:
        """Take over what was kept of a server; False if there is none of that name any more.

        To be called before connections are restored. The connection that tested a server is nobody's
        test any more, so that server has failed, and the next client tests it.
        """
        if kept.kind is Kind.VIRTUAL:
            virtual = self._virtuals.get(kept.name)
            if virtual is None:
                return False
            virtual.setting, virtual.bound_from = kept.setting, min(kept.bound_from, now)
            return True
        real = self._reals.get(kept.name)
        if real is None:
            return False
        real.setting, real.bound_from = kept.setting, min(kept.bound_from, now)
        if kept.weight is not None:
            real.weight = kept.weight
        real.health.no_answer, real.health.reset = kept.no_answer, kept.reset
        if kept.condition is not Condition.WELL and real.spec.failure_threshold:
            tested = kept.condition is Condition.TESTING
            reason = "its test was lost with the worker" if tested else kept.reason
            retry_at = now if tested else min(kept.retry_at, now + real.spec.retry)
            real.health.restore(reason, failed_at=min(kept.failed_at, now), retry_at=retry_at)
            self._watch.restored(real)
        real.changed(now)
        if real.down:
            real.since = real.health.failed_at
        return True
