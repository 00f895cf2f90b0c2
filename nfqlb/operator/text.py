"""Plain text for a terminal: columns, numbers and ages that people read, and nothing that moves the cursor.

All text that comes from elsewhere goes through `clean` before it is printed. Made by hand, without
rich, because `nfqlb show` has to be quick and its output is read by scripts as well.
"""

from collections.abc import Sequence

from nfqlb.core.plural import several as several
from nfqlb.runtime.printable import clean as clean

Row = Sequence[str]


def clean_lines(text: str) -> str:
    """`clean` for text of several lines: the line ends stay, and tabs become spaces."""
    return "\n".join(clean(line) for line in text.expandtabs().split("\n"))


def table(titles: Row, rows: Sequence[Row], right: Sequence[str] = ()) -> list[str]:
    """Lines with two spaces between columns, the columns titled in `right` aligned at their right."""
    cells = [titles, *([clean(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(titles, row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def facts(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of a name and what there is to say about it, the latter aligned."""
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{clean(name):<{width}}  {clean(said)}".rstrip() for name, said in pairs]


def count(number: float) -> str:
    """A number with its thousands apart: 1,234,567."""
    return f"{number:,.0f}"


def size(octets: float) -> str:
    """Bytes in the unit that suits them, a thousand of each in the next: 999 B, 1.2 kB, 34 MB."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if octets < 999.5:
            break
        octets, unit = octets / 1000, larger
    return f"{octets:.0f} {unit}" if unit == "B" or octets >= 9.95 else f"{octets:.1f} {unit}"


def age(seconds: float) -> str:
    """A time in its two largest units: 0.4s, 45s, 3m12s, 2h05m, 3d04h."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def response(seconds: float | None) -> str:
    """A response time in milliseconds; "-" where none was measured."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f}ms" if seconds < 10 else f"{seconds:.1f}s"


def endpoint(address: str, port: int | None) -> str:
    """An address or a server's name with its port; "*" for every port. IPv6 addresses get brackets."""
    where = f"[{address}]" if ":" in address else address
    return f"{where}:{'*' if port is None else port}"
