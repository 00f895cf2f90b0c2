"""What a run came to, as Markdown."""

import platform
import subprocess
from pathlib import Path
from statistics import median

from tests.soak.books import UNKNOWN
from tests.soak.gauge import growth
from tests.soak.story import Rest, Story

GROWTH = 0.01
"""How much of itself a process may grow by after it has warmed up."""
ROLES = ("worker", "supervisor")


def memory(rests: list[Rest], role: str) -> list[int]:
    """RSS of the process that was the last one, in KiB, at those of its rests that count."""
    last = getattr(rests[-1], role).pid if rests else 0
    found = [getattr(rest, role) for rest in rests if rest.warm]
    return [each.rss for each in found if each.pid == last]


def descriptors(rests: list[Rest], role: str) -> dict[int, set[int]]:
    """How many descriptors each process had at its rests, by its number, in the order in which they lived."""
    found: dict[int, set[int]] = {}
    for rest in rests:
        each = getattr(rest, role)
        found.setdefault(each.pid, set()).add(each.descriptors)
    return found


def unsteady(story: Story) -> list[str]:
    """What of memory and descriptors is not as it should be."""
    wrong = []
    for role in ROLES:
        sizes = memory(story.rests, role)
        if len(sizes) >= 6 and growth(sizes) >= GROWTH:
            wrong.append(f"{role}: memory grew by {growth(sizes):.2%}")
        for pid, counts in descriptors(story.rests, role).items():
            if len(counts) != 1:
                wrong.append(f"{role} {pid}: {sorted(counts)} descriptors")
    return wrong


def verdict(story: Story) -> str:
    """One line."""
    if not story.wrong:
        return f"all agreed for {story.lasted / 60:.1f} minutes"
    return f"{len(story.wrong)} things were wrong:\n" + "\n".join(story.wrong)


def report(story: Story, datapath: str, words: str) -> str:
    """All of it; `words` are those of the command that began the run."""
    opened = sum(story.counts.opened.values())
    unknown = sum(count for (_, server), count in story.counts.opened.items() if server == UNKNOWN)
    lasted = max(story.lasted, 1.0)
    lines = [
        f"# Soak, {datapath}",
        "",
        f"`tests/soak/run.sh {words}` at commit {_commit()}: {lasted / 60:.1f} minutes on Linux "
        f"{platform.release()}, Python {platform.python_version()}.",
        "",
        "| | measured | should be |",
        "|---|---|---|",
        f"| connections and flows that clients opened | {opened:,}, {unknown:,} of them left before they "
        f"knew their server | |",
        f"| that the gateway counted | {story.connections:,}, with those of damaged packets and bursts | |",
        f"| requests for a page | {sum(story.counts.pages.values()):,} | |",
        f"| downloads that arrived whole | {story.counts.downloads:,} | |",
        f"| that clients broke off | {story.counts.aborted:,} | |",
        f"| connections held | {sum(story.counts.held.values())} | |",
        *_queries(story),
        f"| packets that came to the gateway | {story.packets:,}, {story.packets / lasted:,.0f} a second | |",
        f"| damaged packets | {story.site.malformed:,} | |",
        f"| lost with a server that was taken away | {story.excused:,} | |",
        f"| given up half-open in a burst, for others, as `synguard` says | {story.crowded:,} | |",
        f"| lost otherwise | {len(story.lost)} | 0 |",
        f"| rests at which all was compared | {len(story.rests)} | |",
        f"| what did not agree, at any of them | {len(story.wrong)} | 0 |",
        *_steadiness(story),
        "",
        "Dropped: " + ", ".join(f"{name} {count:,}" for name, count in sorted(story.drops.items()) if count)
        + f". Workers that were replaced: {story.restarts}.",
        "",
        "| fault | times | well again after, median | at most |",
        "|---|---|---|---|",
    ]
    for name, took in sorted(story.done.items()):
        lines.append(f"| {name} | {len(took)} | {median(took):.2f} s | {max(took):.2f} s |")
    lines += ["", *_course(story), ""]
    if story.wrong:
        lines += ["What was wrong:", "", *(f"- {text}" for text in story.wrong), ""]
    return "\n".join(lines)


def _queries(story: Story) -> list[str]:
    """A row of the queries beside, where there were any; a datagram that is lost is nobody's connection."""
    counts = story.site.queries
    if not counts:
        return []
    return [f"| queries beside | {counts['sent']:,}, {counts['completed']:,} of them answered | |"]


def _steadiness(story: Story) -> list[str]:
    """Rows of memory and descriptors."""
    rows = []
    for role in ROLES:
        sizes = memory(story.rests, role)
        if sizes:
            first, last = sizes[0] / 1024, sizes[-1] / 1024
            rows.append(
                f"| {role}: memory at {len(sizes)} rests after the warm-up | {first:.1f} MiB, {last:.1f} MiB "
                f"at the end: {growth(sizes):+.2%} | less than {GROWTH:+.0%} |"
            )
        found = descriptors(story.rests, role).values()
        said = ", ".join("-".join(map(str, sorted(counts))) for counts in found)
        rows.append(f"| {role}: descriptors, each process at its rests | {said} | one number each |")
    return rows


def _course(story: Story) -> list[str]:
    """Memory at every rest, for who wants to see how it went."""
    lines = [
        "Memory is RSS at a rest, when the table holds nothing but the connections held; its growth is that "
        "of the median of the last third of the rests after the warm-up, against that of the first third.",
        "",
        "| minute | part | warm | worker RSS, PSS, anonymous (KiB) | supervisor | sticky |",
        "|---|---|---|---|---|---|",
    ]
    for rest in story.rests:
        sizes = [f"{each.rss}, {each.pss}, {each.anon}" for each in (rest.worker, rest.supervisor)]
        warm = "yes" if rest.warm else ""
        lines.append(
            f"| {rest.at / 60:.1f} | {rest.part} | {warm} | {sizes[0]} | {sizes[1]} | {rest.sticky} |"
        )
    return lines


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
