"""The demo's picture: one frame for a terminal of any size, and the same facts as plain lines.

Pure: facts in, renderables out. Nothing here is parsed as markup, and every colour comes with a word or sign.
"""

from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from nfqlb.core.plural import several
from nfqlb.demo.tally import Picture, RealRow, Tally, VirtualRow

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
"""One colour a server, in order."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Scene:
    """What a frame is drawn from. `elapsed` and `duration` are seconds (0: until Ctrl-C); `story` is what
    happened, each with its time."""

    title: str
    elapsed: float = 0.0
    duration: float = 0.0
    tally: Tally = field(default_factory=Tally)
    picture: Picture = field(default_factory=Picture)
    story: list[tuple[float, str]] = field(default_factory=list)

    def colour(self, server: str) -> str:
        """The colour of a server."""
        names = [real["name"] for real in self.picture.reals]
        return COLOURS[names.index(server) % len(COLOURS)] if server in names else "white"

    def fair(self, real: RealRow) -> float:
        """A server's fair share, 0 to 1: its weight in the sum of weights (R097)."""
        return real["weight"] / (self.picture.weights or 1)

    def share(self, real: RealRow) -> float:
        """The share, 0 to 1, of all connections so far that a server was given."""
        return self.tally.given[real["name"]] / (self.tally.total or 1)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def milliseconds(seconds: float | None) -> str:
    """A time for the eye: "0.4 ms", "38 ms", "-" where there is none."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"


def stayed(tally: Tally) -> str:
    """What has become of the sticky clients."""
    text = f"{tally.faithful} of {len(tally.homes)} clients of shop stay with one server"
    return text + (f", {len(tally.moved)} moved at a kill" if tally.moved else "")


def bar(share: float, width: int) -> str:
    """A bar of `width` cells for a share of 0 to 1, in eighths of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(width)


def sparkline(values: list[int], width: int, top: int) -> str:
    """The latest `width` values as little columns, of which `top` is the highest."""
    return "".join(_LEVELS[min(7, value * 7 // (top or 1))] for value in values[-width:]).rjust(width)


def frame(scene: Scene, width: int, height: int) -> RenderableType:
    """One full screen of `width` x `height` cells."""
    room = height - 10 - len(scene.picture.reals) - len(scene.picture.virtuals)
    airy = room >= 14
    room -= 5 if airy else 1
    story = max(1, min(len(scene.story), max(2, room // 3)))
    rows = room - story
    parts: list[RenderableType] = [_header(scene, width), _facts(scene)]
    sections: list[tuple[str, list[RenderableType]]] = [
        ("real servers", [_reals(scene, width)]),
        ("virtual servers", [_virtuals(scene, width), _sticky(scene, width)]),
        ("live connections", [_lower(scene, width, rows)] if rows > 0 else []),
        ("what happened", [_story(scene, story)]),
    ]
    for title, content in sections:
        if content:
            parts += [*([Text("")] if airy else []), _rule(title), *content]
    return Group(*parts)


def _rule(title: str) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="bright_black")


def _line(*pieces: tuple[str, str] | str) -> Text:
    return Text.assemble(*pieces, no_wrap=True, overflow="ellipsis")


def _header(scene: Scene, width: int) -> RenderableType:
    left = _line((" nfqlb ", "bold reverse"), "  ", (scene.title, "bold"))
    end = f" of {clock(scene.duration)}" if scene.duration else ""
    right = _line(clock(scene.elapsed) + end)
    left.truncate(width - len(right) - 1, overflow="ellipsis", pad=True)
    return left + Text(" ") + right


def _facts(scene: Scene) -> Text:
    tally = scene.tally
    rate = sum(tally.rate(real["name"]) for real in scene.picture.reals)
    wrong = len(tally.errors) + tally.broken
    live = sum(real["connections"] for real in scene.picture.reals)
    return _line(
        f" {rate:>3} pages/s, {tally.answered:,} in all   {tally.arrived} downloads intact   ",
        (several(wrong, "error"), "bold red" if wrong else "green"),
        f"   {live} live",
        ("   gateway silent", "bold red") if scene.picture.stale else "",
    )


def _table(*columns: tuple[str, str, int]) -> Table:
    """A table of columns (heading, "left" or "right", cells; 0: as wide as what is in it)."""
    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="bright_black", show_edge=False)
    for heading, justify, cells in columns:
        right = justify == "right"
        table.add_column(
            Text(heading), justify="right" if right else "left", no_wrap=True, width=cells or None
        )
    return table


def _reals(scene: Scene, width: int) -> Table:
    tally, picture = scene.tally, scene.picture
    cells = max(8, min(30, width - 72))
    trend = max(0, min(40, width - 74 - cells))
    table = _table(
        ("server", "left", 6),
        ("address", "left", 10),
        ("weight", "right", 6),
        ("live", "right", 4),
        ("total", "right", 6),
        ("share of all", "left", cells + 5),
        ("fair", "right", 4),
        ("answers in", "right", 10),
        *([("pages a second", "left", trend)] if trend > 9 else []),
    )
    top = max((max(tally.history(real["name"]), default=0) for real in picture.reals), default=0)
    for real in picture.reals:
        style, name = scene.colour(real["name"]), real["name"]
        share = scene.share(real)
        row = [
            Text(name, style=f"bold {style}"),
            Text(real["address"]),
            Text(f"{real['weight']:g}"),
            Text(f"{real['connections']}", style="bold"),
            Text(f"{tally.given[name]:,}"),
            Text(bar(share, cells), style=style) + Text(f"{share:>4.0%}", style="default"),
            Text(f"{scene.fair(real):.0%}"),
            Text(milliseconds(tally.typical(name))),
        ]
        if trend > 9:
            row.append(Text(sparkline(tally.history(name), trend, top), style=style))
        table.add_row(*row)
    return table


def _virtuals(scene: Scene, width: int) -> Table:
    wide = width >= 110
    table = _table(
        ("name", "left", 5),
        ("address", "left", 17),
        ("scheduler", "left", 26),
        ("live", "right", 4),
        ("on each server", "left", max(10, width - 64)),
    )
    for virtual in scene.picture.virtuals:
        table.add_row(
            Text(virtual["name"], style="bold"),
            Text(f"{virtual['address']}:{virtual['port']}"),
            Text(virtual["scheduler"]["actual"]),
            Text(f"{virtual['connections']}", style="bold"),
            _spread(scene, virtual, wide),
        )
    return table


def _spread(scene: Scene, virtual: VirtualRow, wide: bool) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for server in virtual["servers"]:
        style = scene.colour(server["real"])
        if wide:
            dots = min(server["connections"], 12)
            line.append(f"{server['real']} {'●' * dots:<12} ", style=style)
        else:
            line.append(f"{server['connections']:>3}", style=style)
    return line


def _sticky(scene: Scene, width: int) -> Text:
    """How many of the sticky clients have stayed, and how many each server has."""
    homes = scene.tally.homes
    line = _line(f" sticky: {stayed(scene.tally)}")
    places = Text("  ")
    for real in scene.picture.reals:
        guests = sum(set(servers) == {real["name"]} for servers in homes.values())
        places.append(f" {real['name']} {guests}", style=scene.colour(real["name"]))
    return line + places if len(line) + len(places) < width else line


def _lower(scene: Scene, width: int, rows: int) -> RenderableType:
    """The live connections and, where there is room for it beside them, the sticky clients."""
    if width < 120:
        return _connections(scene, rows)
    grid = Table.grid(padding=(0, 4, 0, 0))
    grid.add_row(_connections(scene, rows), _homes(scene, rows, width - 82))
    return grid


def _connections(scene: Scene, rows: int) -> Table:
    table = _table(
        ("client", "left", 20),
        ("asks", "left", 5),
        ("served by", "left", 12),
        ("state", "left", 14),
        ("age", "right", 8),
    )
    for connection in scene.picture.connections[:rows]:
        table.add_row(
            Text(f"{connection['client']}:{connection['client_port']}"),
            Text(connection["virtual"]),
            Text(f"{connection['real']}:{connection['real_port']}", style=scene.colour(connection["real"])),
            Text(connection["state"]),
            Text(f"{connection['age_s']:.1f} s"),
        )
    return table


def _homes(scene: Scene, rows: int, width: int) -> Table:
    """Each sticky client with the servers that it has met, one mark a visit."""
    table = _table(("sticky client", "left", 13), ("has met", "left", 10), ("visits", "left", width - 30))
    for client, servers in sorted(scene.tally.homes.items())[:rows]:
        met = Text(" ").join(Text(name, style=scene.colour(name)) for name in sorted(servers))
        visits = sum(servers.values())
        table.add_row(Text(client), met, Text(f"{visits:>4} ") + Text("▪" * visits, style="bright_black"))
    return table


def _story(scene: Scene, rows: int) -> Group:
    return Group(*(_line((f" {clock(at):>5} ", "bright_black"), text) for at, text in scene.story[-rows:]))


def progress_line(scene: Scene) -> str:
    """Where things stand, as one line for a log."""
    tally, picture = scene.tally, scene.picture
    shares = ", ".join(
        f"{real['name']} {scene.share(real):.0%} (fair {scene.fair(real):.0%})" for real in picture.reals
    )
    wrong = len(tally.errors) + tally.broken
    pages, downloads = several(tally.answered, "page"), several(tally.arrived, "download")
    return f"{pages}, {downloads}, {several(wrong, 'error')}; {shares}"


def closing_lines(scene: Scene) -> list[str]:
    """What the demo has shown, as lines for a person."""
    tally, picture = scene.tally, scene.picture
    lines = [
        f"In {clock(scene.elapsed)}: {several(tally.answered, 'page')},"
        f" {several(tally.arrived, 'download')}, {several(tally.total, 'connection')};"
        f" {several(len(tally.errors), 'error')}, {tally.broken} damaged.",
    ]
    lines += [
        f"  {real['name']}  weight {real['weight']:g}: {tally.given[real['name']]:>6,} connections,"
        f" {scene.share(real):>4.0%} of all (fair: {scene.fair(real):.0%}),"
        f" a page in {milliseconds(tally.typical(real['name']))}"
        for real in picture.reals
    ]
    lines.append(f"  sticky: {stayed(tally)}")
    lines.append(f"  the worker was killed and replaced: {picture.restarts} x")
    lines += [f"  error: {error}" for error in tally.errors[:5]]
    return lines
