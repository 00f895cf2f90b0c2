"""The order of measuring: round-robin over the variants, so that noise meets all of them alike.

Each measurement goes over all variants in turn before the next measurement begins, and whoever is
first changes from round to round: what one ratio compares was measured within seconds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from nfqlb.demo.lab import Lab, LabError
from nfqlb.demo.programs import require
from tests.bench.contender import PREFIX, Contender, complaints
from tests.bench.load import MEASUREMENTS, Load
from tests.bench.variants import Variant

_SETTLE = 0.05  # seconds between two measurements, for what the last one left to be done


@dataclass(slots=True)
class Results:
    """Samples by variant and metric, in the order of the rounds; and what went wrong beside them.

    `errors`: failed requests seen by the client; `drops`: packets lost by the gateway's queues.
    """

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: dict[str, float], errors: int) -> None:
        """Note one measurement of a variant."""
        for metric, value in values.items():
            self.samples.setdefault(name, {}).setdefault(metric, []).append(value)
        self.errors[name] = self.errors.get(name, 0) + errors


@contextmanager
def contenders(
    variants: dict[str, Variant], servers: int, *, progress: Callable[[str], None]
) -> Iterator[list[Contender]]:
    """All variants up and running, each in a laboratory of its own, until the context ends.

    Raises LabError where a program is missing or a variant does not start.
    """
    programs = {program for variant in variants.values() for program in variant.programs}
    require("nginx", "wrk", "curl", "conntrack", *sorted(programs))
    with ExitStack() as stack:
        running: list[Contender] = []
        for name, variant in variants.items():
            progress(f"starting {variant.title}")
            lab = stack.enter_context(Lab(servers=servers, prefix=PREFIX))
            try:
                running.append(Contender(name, variant, lab, running[0].bulk if running else None))
            except LabError as error:
                raise LabError(f"{variant.title} does not start: {error}\n{complaints(lab)}") from error
        yield running


def measure(
    running: Sequence[Contender], load: Load, rounds: int, *, progress: Callable[[str], None]
) -> Results:
    """Measure everything `rounds` times. Raises LabError when a variant fails under load."""
    results = Results()
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for turn, (what, function) in enumerate(MEASUREMENTS.items()):
            first = (number + turn) % len(running)
            for contender in (*running[first:], *running[:first]):
                time.sleep(_SETTLE)
                try:
                    sample = function(contender, load)
                except LabError as error:
                    title = contender.variant.title
                    raise LabError(f"{title}, {what}: {error}\n{complaints(contender.lab)}") from error
                results.add(contender.name, sample.values, sample.errors)
                contender.flush()
    for contender in running:
        results.drops[contender.name] = contender.drops()
    return results
