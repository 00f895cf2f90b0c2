"""`python -m tests.bench [micro]`: measure the variants side by side, or the worker alone, and report."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from nfqlb.demo.lab import LabError
from tests.bench import micro
from tests.bench.load import Load
from tests.bench.report import circumstances, document, markdown, show
from tests.bench.rounds import contenders, measure
from tests.bench.variants import VARIANTS, choose


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run.sh",
        description="Compare nfqlb with its neighbours, side by side, on this machine.",
        epilog="`micro` as the first word: measure the worker without the kernel (micro --help).",
    )
    standard = Load()

    def number(name: str, value: int, what: str) -> None:
        parser.add_argument(name, type=_positive, default=value, metavar="N", help=f"{what} ({value})")

    number("--rounds", 15, "rounds over all variants")
    number("--seconds", standard.seconds, "seconds of each measurement")
    number("--servers", 3, "web servers behind each gateway")
    number("--threads", standard.threads, "threads of wrk")
    number("--connections", standard.connections, "connections of wrk")
    number("--downloads", standard.downloads, "parallel downloads")
    number("--rate", standard.rate, "paced requests a second")
    names = ",".join(VARIANTS)
    parser.add_argument("--variants", default=names, metavar="LIST", help=f"which of {names} (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and ratio to a file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark. Returns 0, 1 with one line on stderr when it cannot, 130 when it was stopped."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["micro"]:
        return micro.main(words[1:])
    options = _parser().parse_args(words)
    try:
        _compare(options)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: stopped, nothing is reported", file=sys.stderr)
        return 130
    return 0


def _compare(options: argparse.Namespace) -> None:
    variants = choose(options.variants)
    load = Load(options.seconds, options.threads, options.connections, options.downloads, options.rate)
    before = os.getloadavg()[0]
    with contenders(variants, options.servers, progress=_progress) as running:
        results = measure(running, load, options.rounds, progress=_progress)
    where = circumstances(options.rounds, options.servers, load, before)
    show(_console(), results, where)
    if options.json:
        options.json.write_text(document(results, where) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(results, where))


def _console() -> Console:
    """The terminal as wide as it is; a file wide enough for the tables."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)


def _progress(text: str) -> None:
    """One line on stderr, overwritten on a terminal. (A live display would fork beside its own thread.)"""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{text:<78}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
