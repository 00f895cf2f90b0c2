"""Everything at once on a real journal: what each dead worker's successor finds is what was."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nfqlb.netfilter.procfs import Namespace
from nfqlb.runtime.journal import Journal
from tests.core.test_together import Player
from tests.core.traffic import Traffic

HERE = Namespace(4026531840, 7, "0f0f0f0f-0000-4000-8000-000000000000")
STEPS = 400


class Journalled(Traffic):
    """`Traffic` whose workers write a journal, each opening it anew, as does who looks into it."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def journals(self) -> tuple[Any, Any]:
        if hasattr(self, "memory"):
            self.memory.close()
        journal = self._opened()
        list(journal.records())
        list(journal.kept())
        return journal, journal

    def kept(self) -> list[Any]:
        with closing(self._opened()) as journal:
            return list(journal.kept())

    def remembered(self) -> list[tuple[int, bytes, bytes, int, float]]:
        with closing(self._opened()) as journal:
            return [
                (each.place, each.inbound, each.server, each.code, float(each.opened))
                for each in journal.records()
            ]

    def teardown(self) -> None:
        super().teardown()
        self.memory.close()

    def _opened(self) -> Journal:
        return Journal(60, directory=self._directory, where=HERE)


@pytest.mark.parametrize("seed", range(3))
def test_everything_together_on_a_journal(tmp_path: Path, seed: int) -> None:
    """R012, R039, R179, R186, R187: every connection of every kind, every setting and every failure."""
    Player(seed, Journalled(tmp_path)).play(STEPS)
