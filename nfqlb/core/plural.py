"""Numbers of things: "1 connection", "2,000 connections". Imported at every start, so it imports nothing."""


def several(number: float, one: str, many: str = "") -> str:
    """A whole number of things; `many` where their plural is not `one` with an s."""
    return f"{number:,.0f} {noun(number, one, many)}"


def noun(number: float, one: str, many: str = "") -> str:
    """The word for so many things, for who shows the number otherwise."""
    return one if round(number) == 1 else many or f"{one}s"
