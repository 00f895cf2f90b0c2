"""A counter that never falls, made of one that may begin anew or be full. Pure."""


class Rising:
    """`width` is how many values the other counter has, 0 where it is never full.

    Where that falls from its upper half into its lower it was full; from anywhere else it began anew.
    """

    __slots__ = ("_before", "_last", "_width")

    def __init__(self, width: int = 0) -> None:
        self._before = 0
        self._last = 0
        self._width = width

    def at(self, count: int) -> int:
        """The sum, where the other counter is at `count` now."""
        if count < self._last:
            if count < self._width // 2 <= self._last:
                self._before += self._width
            else:
                self.restart()
        self._last = count
        return self.total

    @property
    def total(self) -> int:
        """The sum, as of the last count."""
        return self._before + self._last

    def restart(self) -> None:
        """The other counter begins anew from here, at 0."""
        self._before += self._last
        self._last = 0
