"""The soak's short form: half a minute in which both datapaths suffer a few faults, and all is counted."""

import os
import random

import pytest

from tests.soak.faults import FAULTS
from tests.soak.report import report, unsteady
from tests.soak.site import Shape, Size, site
from tests.soak.story import Pace, Part, Story

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")

SEED = 7
SIZE = Size(short=2, kept=2, idle=1, pause=0.2, mebibytes=2)
CHOSEN = (
    "worker killed", "supervisor killed", "server dead", "configuration reloaded", "control socket abused",
    "rules flushed",
)  # fmt: skip


@pytest.mark.timeout(150)
def test_nothing_is_lost_and_all_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """F35: no connection but with its server, counters as clients and servers have them, nothing left."""
    part = Part("short", 1, ("nobody", "worker", "supervisor"), only=CHOSEN)
    with site(Shape("both", udp=2), SIZE) as place:
        story = Story(place, random.Random(SEED), Pace(storm=1, calm=3, pause=0.4), print)
        story.tell((part,))
        story.finish()
        text = report(story, "both", f"--seed {SEED}")
    with capsys.disabled():
        print(text if story.wrong else f"{story.lasted:.0f} s, {story.packets:,} packets")
    assert story.wrong == []
    assert unsteady(story) == []
    assert set(story.done) == set(CHOSEN)
    assert {fault.name for fault in FAULTS} >= set(CHOSEN)
    assert sum(story.counts.pages.values()) > 300
    assert sum(story.counts.held.values()) == 24
    assert story.counts.downloads > 3
    assert "| lost otherwise | 0 | 0 |" in text
