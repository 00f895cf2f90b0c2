"""`python -m tests.fuzz [--runs N] [--seed S] [--blind] TARGET ...`: hostile input by the million.

Guided by coverage (atheris, the extra `fuzz`), or `--blind`, which is many times as fast. What fails is kept
in a file, and `--again FILE` tries it anew.
"""

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_LONGEST = 4000  # bytes of one input
_GUIDED = 1500
_PORTION = 5000  # inputs between two lines


class Tally:
    """Counts what a target was given; keeps the bytes of the call at hand."""

    def __init__(self, name: str, keep: Path) -> None:
        self.name = name
        self.inputs = self.packets = 0
        self.longest = 0.0  # seconds of one input
        self._target: Callable[[bytes], int] = import_module("tests.fuzz.targets").TARGETS[name]
        self._keep = keep
        self._begun = time.monotonic()

    def put(self, data: bytes) -> None:
        """Try one input. Whatever it raises is told of, with the file that has the bytes, and raised."""
        begun = time.process_time()
        try:
            self.packets += self._target(data)
        except BaseException:
            file = self._keep / f"{self.name}-{self.inputs}"
            file.write_bytes(data)
            print(f"{self.name}: failed after {self.packets} packets; its bytes: {file}", file=sys.stderr)
            raise
        self.inputs += 1
        self.longest = max(self.longest, time.process_time() - begun)

    def report(self, way: str) -> None:
        """Say how it went, in a line."""
        seconds = time.monotonic() - self._begun
        print(
            f"{self.name}: {way}, {self.inputs:,} inputs, {self.packets:,} packets in {seconds:.0f} s, "
            f"{self.packets / seconds:,.0f} packets/s, longest input {self.longest * 1000:.0f} ms, "
            "0 exceptions",
            flush=True,
        )


def _blind(name: str, keep: Path, runs: int, seed: int) -> None:
    dice, tally = random.Random(seed), Tally(name, keep)
    while tally.packets < runs:
        tally.put(dice.randbytes(int(dice.triangular(8, _LONGEST, _GUIDED))))
    tally.report(f"blind, seed {seed}")


def _guided(name: str, keep: Path, runs: int, seed: int, corpus: list[str]) -> None:
    """Does not return: libFuzzer ends the process. `runs` are inputs here, each of many packets."""
    atheris: Any = import_module("atheris")  # the extra `fuzz`
    with atheris.instrument_imports(include=["nfqlb"]):
        import_module("tests.fuzz.targets")
    tally = Tally(name, keep)

    def one(data: bytes) -> None:
        tally.put(data)
        if not tally.inputs % _PORTION or tally.inputs == runs:
            tally.report(f"guided, seed {seed}")

    arguments = [f"-seed={seed}", f"-runs={runs}", f"-max_len={_GUIDED}", "-len_control=0"]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={keep}/", *arguments, *corpus], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz; 0 if nothing gave way, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="packets, or inputs where they are guided")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="without coverage: many times as fast")
    parser.add_argument("--again", type=Path, help="try one input that failed, instead")
    parser.add_argument("--keep", type=Path, default=Path.cwd(), help="where inputs that fail are kept")
    parser.add_argument("--corpus", action="append", default=[], help="where inputs that reach more are kept")
    parser.add_argument("target", nargs="+", help="one; several with --blind")
    options = parser.parse_args()
    if not options.blind and not options.again:
        _guided(options.target[0], options.keep, options.runs, options.seed, options.corpus)
    try:
        for name in options.target:
            if options.again is not None:
                Tally(name, options.keep).put(options.again.read_bytes())
            else:
                _blind(name, options.keep, options.runs, options.seed)
    except Exception:  # noqa: BLE001  whatever it is, it is what was looked for
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
