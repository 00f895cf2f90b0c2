"""The lowest of many numbers, kept at hand while they change.

Owns a tournament tree: leaf i holds the indicium of position i, every node the lower of its
two children, so the root holds the lowest of all. A change walks up from its leaf and stops
where nothing changes any more; finding the first holder of the lowest after a position
walks up and down once. Both cost about log2(n) steps.
"""

from collections.abc import Sequence
from math import inf


class Ranking:
    """Numbers by position; `inf` means "not to be chosen"."""

    __slots__ = ("_leaves", "_nodes")

    def __init__(self, values: Sequence[float]) -> None:
        self._leaves = 1
        while self._leaves < len(values):
            self._leaves *= 2
        self._nodes = [inf] * (2 * self._leaves)
        self._nodes[self._leaves : self._leaves + len(values)] = values
        for node in range(self._leaves - 1, 0, -1):
            self._nodes[node] = min(self._nodes[2 * node], self._nodes[2 * node + 1])

    def set(self, position: int, value: float) -> None:
        """Change the number at `position`."""
        nodes = self._nodes
        node = position + self._leaves
        if nodes[node] == value:
            return
        nodes[node] = value
        while node > 1:
            sibling = nodes[node ^ 1]
            if sibling < value:
                value = sibling
            node >>= 1
            if nodes[node] == value:
                return
            nodes[node] = value

    def lowest_after(self, last: int) -> int | None:
        """The position of the lowest number: the first after `last` that holds it, else the first of all.

        None if every number is `inf`. `last` may be -1 (none used yet).
        """
        nodes = self._nodes
        lowest = nodes[1]
        if lowest == inf:
            return None
        node = last + self._leaves
        if last < 0 or last >= self._leaves:
            return self._first(1, lowest)
        while node > 1:
            if not node & 1 and nodes[node + 1] == lowest:
                return self._first(node + 1, lowest)
            node >>= 1
        return self._first(1, lowest)

    def _first(self, node: int, value: float) -> int:
        """The first position below `node` that holds `value`, which the node itself has."""
        nodes = self._nodes
        while node < self._leaves:
            node *= 2
            if nodes[node] != value:
                node += 1
        return node - self._leaves
