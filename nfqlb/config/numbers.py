"""Which numbers of the kernel's a configuration uses: of queues, of the group that tells of connections, of
idle time-outs.

Owns how they follow from `[gateway] queue`: two queues for datapath rewrite, one more for offload. What a
running gateway has numbered keeps its number when it is reconfigured (`Config.numbers`).
"""

import math

from nfqlb.config.marks import OFFLOAD
from nfqlb.core.spec import Config


def queue_numbers(config: Config) -> tuple[int, ...]:
    """The NFQUEUE numbers: for datapath rewrite that of SYNs and that of all else; for offload the last."""
    first, used = config.gateway.queue, datapaths(config)
    rewrite = (first, first + 1) if "rewrite" in used else ()
    return rewrite + ((offload_queue(config),) if OFFLOAD in used else ())


def offload_queue(config: Config) -> int:
    """The queue of what opens connections under datapath offload."""
    return config.gateway.queue + (2 if "rewrite" in datapaths(config) else 0)


def tap_group(config: Config) -> int:
    """The NFLOG group of datapath offload. Never 0, which a logging daemon may have by default."""
    return config.gateway.queue + 1


def datapaths(config: Config) -> list[str]:
    """The datapaths that its virtual servers use, each once; those that are bound, where it is running."""
    return list(config.numbers.datapaths or dict.fromkeys(virtual.datapath for virtual in config.virtuals))


def idle_times(config: Config) -> list[int]:
    """The idle time-outs of TCP that datapath offload needs, in whole seconds: the general one first.

    One that a running gateway has keeps its place, as connections hold on to it.
    """
    places = (
        config.real(server.real).idle_timeout
        for virtual in config.virtuals
        if virtual.datapath == OFFLOAD and virtual.protocol == "tcp"
        for server in config.places(virtual)
    )
    found = [whole_seconds(config.timeouts.idle), *config.numbers.idle[1:]]
    known = set(found)
    return found + [each for each in dict.fromkeys(map(whole_seconds, places)) if each not in known]


def whole_seconds(seconds: float) -> int:
    """A time-out as conntrack can have it: not shorter than meant, and never 0."""
    return max(1, math.ceil(seconds))
