"""The soak by hand: see the package, and `--help`."""

import argparse
import os
import random
import sys
from pathlib import Path

from tests.soak.report import report, unsteady, verdict
from tests.soak.site import Shape, Size, site
from tests.soak.story import Pace, Part, Story, to_terminal


def parts_of(minutes: float) -> tuple[Part, ...]:
    """A run's parts: a fifth in which supervisors die, a fifth in which workers do, then nobody."""
    seconds = minutes * 60
    return (
        Part("supervisors and workers die", seconds / 5, ("nobody", "worker", "supervisor")),
        Part("workers die", seconds / 5, ("nobody", "worker")),
        Part("nobody dies", seconds * 3 / 5, ("nobody",), warming=min(480.0, seconds / 5)),
    )


def main() -> int:
    """Returns the exit status: 0 where everything agreed."""
    parser = argparse.ArgumentParser(prog="tests/soak/run.sh", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all that is left to chance (1)")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--datapath", choices=("rewrite", "offload", "both"), default="rewrite")
    parser.add_argument("--queries", type=int, default=0, help="of names, a second, beside all else (0)")
    parser.add_argument("--report", type=Path, help="a Markdown file to write")
    wanted = parser.parse_args()
    words = f"--seed {wanted.seed} --minutes {wanted.minutes:g} --datapath {wanted.datapath}"
    words += f" --queries {wanted.queries}" if wanted.queries else ""
    with site(Shape(wanted.datapath, queries=wanted.queries), Size()) as place:
        story = Story(place, random.Random(wanted.seed), Pace(), to_terminal)
        try:
            story.tell(parts_of(wanted.minutes))
        finally:
            story.finish()
            for text in unsteady(story):
                story.blame(text)
            if wanted.report:
                wanted.report.write_text(report(story, wanted.datapath, words))
    if wanted.report:
        wanted.report.write_text(report(story, wanted.datapath, words))
    sys.stdout.write(verdict(story) + "\n")
    return 1 if story.wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
