"""How properties are tried: the same examples every time, no clock, nothing written to disk."""

from hypothesis import settings

TRIES = settings(derandomize=True, deadline=None, database=None, max_examples=100)
