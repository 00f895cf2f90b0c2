"""Everything at once, for longer: the site of `traffic`, played by chance from fixed seeds."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from nfqlb.core.admission import ServerState
from tests.core.scenario import Call, Flow
from tests.core.traffic import CLIENTS, CLIENTS6, DATAGRAMS, NAMES, PORTS, SERVICES, SETTINGS, STEPS, Traffic

STEPS_A_SEED = 2_000
UNDER_WAY = 24


class Player:
    """Plays the rules of `Traffic` by chance, some more often than others."""

    def __init__(self, seed: int, traffic: Traffic | None = None) -> None:
        self.chance = chance = random.Random(seed)
        self.traffic = traffic or Traffic()
        self.traffic.begin(
            count_on=chance.choice(["syn", "syn-ack"]),
            close_on=chance.choice(["both", "fin", "time-out"]),
            on_failure=chance.choice(["keep", "drop", "reset"]),
            startup=chance.choice(["none", "round-robin"]),
            room=chance.choice([6, 16, 40]),
        )
        self.calls: list[Call] = []
        self.flows: list[Flow] = []

    def play(self, steps: int) -> None:
        """So many steps, audited after each, and the end of it all."""
        rules: list[tuple[Callable[[], Any], int]] = [
            (self.dial, 14), (self.connect, 10), (self.ask, 8), (self.speak, 8), (self.converse, 24),
            (self.repeat, 16), (self.complain, 2), (self.stray, 2), (self.wait, 12), (self.order, 8),
            (self.tell, 1), (self.die, 1),
        ]  # fmt: skip
        for step in self.chance.choices([each for each, _ in rules], [often for _, often in rules], k=steps):
            step()
            self.traffic.books_are_right()
            self.traffic.journals_are_right()
            self.traffic.resets_are_of_ended_connections()
        self.traffic.teardown()

    def dial(self) -> None:
        self._keep(self.traffic.dial(self._one(SERVICES), *self._client(), self._one([1, 2**31, 2**32 - 1])))

    def connect(self) -> None:
        self._keep(self.traffic.connect(self._one(SERVICES), self.chance.randrange(3)))

    def ask(self) -> None:
        flow: Any = self.traffic.ask(self._one(DATAGRAMS), *self._client())
        self.flows.append(flow)
        del self.flows[:-UNDER_WAY]

    def speak(self) -> None:
        if self.flows:
            self.traffic.speak(self._one(self.flows), self.chance.random() < 0.6)

    def converse(self) -> None:
        if not self.calls:
            return
        call, what = self._one(self.calls), self.chance.randrange(10)
        if what < 3:
            self.traffic.request(call, self._one([0.01, 0.3, 4.0]))
        elif what < 8:
            self.traffic.go_on(call, self._one(STEPS))
        else:
            self.traffic.end(call, self._one(["close", "reset", "server_reset", "refusal"]))
            self.calls.remove(call)

    def repeat(self) -> None:
        if self.calls and self.chance.random() < 0.5:
            self.traffic.ask_in_vain(self._one(self.calls))
        elif self.calls:
            self.traffic.repeat(self._one(self.calls), self._one([None, None, 77]))

    def complain(self) -> None:
        if self.flows:
            self.traffic.complain(self._one(self.flows), self.chance.random() < 0.5)

    def stray(self) -> None:
        if self.calls:
            flags, number = self.chance.randrange(0x20), self.chance.getrandbits(32)
            self.traffic.stray(self._one(self.calls), flags, number, number, self.chance.random() < 0.5)

    def wait(self) -> None:
        if self.chance.random() < 0.3:
            self.traffic.hardly_time(self._one([0.1, 11.0]), self.chance.randrange(1, 4))
        else:
            self.traffic.wait(self._one([0.1, 1.0, 1.0, 5.0, 9.0, 31.0, 130.0]))

    def order(self) -> None:
        name = self._one(NAMES)
        what = self.chance.randrange(8)
        if what < 2:
            self.traffic.weigh(name, self._one([0, 1, 2.5]))
        elif what < 5:
            setting = self._one([*3 * [ServerState.IN_SERVICE], *SETTINGS])
            self.traffic.put(name, setting, self._one([None, None, 1]))
        elif what < 7:
            self.traffic.put_virtual(self._one(SERVICES + DATAGRAMS), self.chance.random() < 0.2)
        else:
            wanted = self._one([None, *SERVICES, *DATAGRAMS]), self._one([None, *CLIENTS, *CLIENTS6])
            self.traffic.clear(*wanted)

    def tell(self) -> None:
        self.traffic.tell()

    def die(self) -> None:
        self.traffic.die(self._one([0.0, 0.5, 35.0]))

    def _client(self) -> tuple[int, int]:
        return self.chance.randrange(3), self._one(PORTS)

    def _one(self, several: Any) -> Any:
        return self.chance.choice(several)

    def _keep(self, call: Any) -> None:  # what a rule returns, hypothesis knows no better
        if call.reply_key:
            self.calls.append(call)
            del self.calls[:-UNDER_WAY]


@pytest.mark.parametrize("seed", range(6))
def test_everything_together(seed: int) -> None:
    """R012, R043, R050, R061, R094, R104, R125-R129, R179-R183, R186, R187: the books are always right.

    UDP and TCP, IPv4 and IPv6, every port, failures and tests, all that an operator may set, and workers
    that die: counters, indexes, rankings, journals, sticky entries and records of decisions agree with a
    recount after every step, what is told of decisions is what was, and in the end nothing is left.
    """
    Player(seed).play(STEPS_A_SEED)
