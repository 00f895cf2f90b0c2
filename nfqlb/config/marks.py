"""Which mark stands for which link where the kernel translates (datapath `offload`).

Owns the layout of the bits of `mark_mask` there. The highest bit, in a connection's mark only, is the
armed one: a request has been seen and its answer is awaited. The others are a number:

    0             none of ours
    1             kept free: in datapath `rewrite`, a connection straight to a real server
    2 ...         a link: a real server's address and port (RealServer and port objects 3B, 3F)
    ... all ones  kept free: with the armed bit it is judged, in `rewrite`

Links whose response times are measured (R173: only where a scheduler uses them) have the upper end of the
numbers, a block that one comparison under a mask tells from the rest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from nfqlb.config.report import Problem
from nfqlb.core.spec import Config, Numbers, Server, Target, Virtual

OFFLOAD = "offload"
TIMED_SCHEDULERS = ("fastest-response",)
_FIRST = 2
_WORD = 32  # bits of a mark
_LAST_QUEUE = 65_535


class LinkMarks:
    """The marks of one configuration's links. Raises ValueError where they do not fit into its mask.

    `armed` is the armed bit, `number_mask` the bits of the number. `timed` is the value and the mask that
    tell a measured link's mark, (0, 0) without any. Links that a running gateway has numbered keep their
    numbers (`Config.numbers`), for packets are on their way with them; `marks` has those too that no virtual
    server needs any more.
    """

    def __init__(self, config: Config) -> None:
        self.mask = config.gateway.mark_mask
        self.armed = 1 << (self.mask.bit_length() - 1)
        self.number_mask = self.mask ^ self.armed
        self._config = config
        shift = (self.mask & -self.mask).bit_length() - 1
        kept = {target: mark >> shift for target, mark in config.numbers.marks}
        plain, timed = _targets(config)
        size = (self.number_mask >> shift) + 1
        block = _block(timed, kept, size)
        numbers = _numbered(plain, timed, kept, size, block)
        if numbers is None:
            raise ValueError(f"{len(plain) + len(timed)} links do not fit into {self.mask:#010x}")
        self.marks: dict[Target, int] = {target: number << shift for target, number in numbers.items()}
        top = self.number_mask & ~((block - 1) << shift)
        self.timed = (top, top) if timed else (0, 0)

    def of(self, virtual: Virtual, server: Server) -> int:
        """The mark of a real server's place in a virtual server. Raises KeyError for one not offloaded."""
        return self.marks[_target(self._config, virtual, server)]


def needed_marks(config: Config) -> tuple[tuple[Target, int], ...]:
    """The marks that virtual servers need at present, without those kept for packets on their way."""
    needed = {target for targets in _targets(replace(config, numbers=Numbers())) for target in targets}
    return tuple(each for each in LinkMarks(config).marks.items() if each[0] in needed)


def is_timed(virtual: Virtual) -> bool:
    """Whether a virtual server's scheduler, or its shadow, goes by response times (R173)."""
    return virtual.scheduler in TIMED_SCHEDULERS or virtual.shadow in TIMED_SCHEDULERS


def check_offload(config: Config) -> Iterator[Problem]:
    """What datapath offload needs and does not get: a queue of its own, and numbers for its links."""
    datapaths = {virtual.datapath for virtual in config.virtuals}
    if OFFLOAD not in datapaths:
        return
    if len(datapaths) > 1 and config.gateway.queue > _LAST_QUEUE - 2:
        message = f"{config.gateway.queue} is too high for both datapaths, which use three queues from there"
        yield Problem(("gateway", "queue"), message, f"{_LAST_QUEUE - 2} at most")
    for index, virtual in enumerate(config.virtuals):
        if virtual.datapath == OFFLOAD:
            yield from _needs_every_packet(config, virtual, index)
    yield from _links_fit(config)


def _needs_every_packet(config: Config, virtual: Virtual, index: int) -> Iterator[Problem]:
    """What a virtual server asks for that only a worker can do which sees all of its packets."""
    hint = 'take another, or datapath = "rewrite" for this virtual server'
    if virtual.sticky and virtual.sticky_refresh == "activity" and not config.strict.refresh:
        message = 'datapath "offload" does not see the packets that "activity" counts'
        yield Problem(("virtual", index, "sticky_refresh"), message, hint)
    if not is_timed(virtual):
        return
    if virtual.response_start != "request":
        message = f'datapath "offload" times answers to requests, not what follows "{virtual.response_start}"'
        yield Problem(("virtual", index, "response_start"), message, hint)
    if config.strict.every_packet:
        message = f'datapath "offload" of {virtual.name} is told of the first packet of an answer only'
        yield Problem(("strict", "every_packet"), message, hint)


def _links_fit(config: Config) -> Iterator[Problem]:
    """The problem of more links than `mark_mask` has numbers for."""
    plain, timed = _targets(config)
    mask = config.gateway.mark_mask
    low = (mask & -mask).bit_length() - 1
    room, needed = 1 << max(mask.bit_length() - low - 1, 0), _needed(len(plain), len(timed))
    if needed > room:
        bits = (needed - 1).bit_length() + 1
        count = len(plain) + len(timed)
        message = f'{mask:#010x} has no room for {count} real servers and ports of datapath "offload"'
        hint = f"widen it, e.g. mark_mask = {_widened(low, bits):#010x}, or use a virtual server with rewrite"
        yield Problem(("gateway", "mark_mask"), message, hint)


def _targets(config: Config) -> tuple[list[Target], list[Target]]:
    """All links' targets, each once: those not measured, and those measured. Numbered ones come first."""
    found = {target: None for target, _ in config.numbers.marks} | {
        _target(config, virtual, server): None
        for virtual in config.virtuals
        if virtual.datapath == OFFLOAD
        for server in config.places(virtual)
    }
    return [one for one in found if not one.timed], [one for one in found if one.timed]


def _target(config: Config, virtual: Virtual, server: Server) -> Target:
    real = config.real(server.real)
    return Target(real.address, virtual.protocol, server.port, is_timed(virtual), real.idle_timeout)


def _numbered(
    plain: list[Target], timed: list[Target], kept: Mapping[Target, int], size: int, block: int
) -> dict[Target, int] | None:
    """A number below `size` for each target, the one it has where it has one; None where they do not fit.

    Measured ones are in the uppermost `block`. Neither the first two nor the last number is given out.
    """
    if 2 * block > size and (plain or timed):
        return None
    found: dict[Target, int] = {}
    for targets, numbers in ((plain, range(_FIRST, size - block)), (timed, range(size - block, size - 1))):
        mine = {target: kept[target] for target in targets if target in kept}
        if any(number not in numbers for number in mine.values()):
            return None
        taken = set(mine.values())
        free = (number for number in numbers if number not in taken)
        fresh = [target for target in targets if target not in mine]
        found |= mine | dict(zip(fresh, free, strict=False))
    return found if len(found) == len(plain) + len(timed) else None


def _block(timed: list[Target], kept: Mapping[Target, int], size: int) -> int:
    """How many numbers are kept for measured links: a power of two, with room for the one of all ones."""
    lowest = min((kept[target] for target in timed if target in kept), default=size)
    return max(_block_of(len(timed)), 1 << (size - lowest - 1).bit_length() if lowest < size else 1)


def _block_of(timed: int) -> int:
    """The least block for so many measured links; 1 without any."""
    return 1 << timed.bit_length()


def _needed(plain: int, timed: int) -> int:
    """How many numbers there must be: a power of two, so that the block lies on a boundary; 0 for none."""
    if not plain and not timed:
        return 0
    least = max(_FIRST + plain + _block_of(timed), 2 * _block_of(timed))
    return 1 << (least - 1).bit_length()


def _widened(low: int, bits: int) -> int:
    """A mask of so many bits, as near to where the old one lies as a mark's 32 bits allow."""
    return ((1 << bits) - 1) << max(min(low, _WORD - bits), 0)
