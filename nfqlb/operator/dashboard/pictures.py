"""Pictures of the dashboard as SVG files: `python -m nfqlb.operator.dashboard.pictures SOCKET DIRECTORY`.

Draws what `nfqlb top` would show of the gateway at SOCKET, each view once, by the keys that lead there.
`examples/pictures.sh` runs it beside the demo.
"""

import io
import re
import sys
import time
from pathlib import Path
from selectors import DefaultSelector

from rich.console import Console
from rich.segment import Segment, Segments

from nfqlb.operator.dashboard.actions import Explain, press
from nfqlb.operator.dashboard.asking import Asking
from nfqlb.operator.dashboard.state import State
from nfqlb.operator.dashboard.views.frame import frame

#: Each picture: its name, the keys that lead to it from the one before, its size.
PICTURES = (
    ("summary", "1", (118, 28)),
    ("virtual", "2", (118, 10)),
    ("real", "3jj", (118, 11)),
    ("server", "\n", (118, 18)),
    ("explain", "4jje", (118, 24)),
    ("events", "x5", (118, 24)),
)
PATIENCE = 1.5  # seconds until a view has all its answers

_FONTS = re.compile(r"\s*@font-face \{.*?\}\n", re.DOTALL)  # which a picture would fetch from elsewhere
_SPACES = re.compile(r" +|[^ ](?:.*[^ ])?")


def draw(path: Path, directory: Path) -> None:
    """Write every picture of the gateway at `path`. Raises OSError where they cannot be written."""
    state = State(now=time.time())
    with DefaultSelector() as selector:
        asking = Asking(path, selector, state, lambda: None)
        for name, keys, size in PICTURES:
            _settle(asking, selector, state, size)
            for key in keys:
                for deed in press(state, "enter" if key == "\n" else key):
                    if isinstance(deed, Explain):
                        asking.explain(deed)
                    else:  # another page: what it shows has to come first
                        asking.refresh()
                        _settle(asking, selector, state, size)
            _settle(asking, selector, state, size)
            svg = picture(frame(state, *size), size)
            (directory / f"{name}.svg").write_text(svg, encoding="utf-8")
        asking.close()


def _settle(asking: Asking, selector: DefaultSelector, state: State, size: tuple[int, int]) -> None:
    """Let the answers come that a view needs."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        asking.tick()
        for key, mask in selector.select(0.1):
            key.data(mask)
        state.now = time.time()
        frame(state, *size)
        asking.histories()


def picture(lines: list[list[Segment]], size: tuple[int, int]) -> str:
    """A screen as an SVG document."""
    width, height = size
    console = Console(file=io.StringIO(), record=True, width=width, height=height, color_system="truecolor",
                      force_terminal=True)  # fmt: skip
    for line in lines:
        console.print(Segments([*_apart(line), Segment.line()]), end="")
    return _FONTS.sub("", console.export_svg(title="nfqlb top", unique_id="nfqlb"))


def _apart(line: list[Segment]) -> list[Segment]:
    """The line with spaces around a text apart from it: not every viewer keeps them where a text begins."""
    return [Segment(piece, style) for text, style, _ in line for piece in _SPACES.findall(text)]


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
