"""Text from elsewhere made fit for a terminal or a log. Imported at every start, so it imports nothing."""


def clean(text: str) -> str:
    """The text with everything unprintable (control characters, direction marks, ...) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
