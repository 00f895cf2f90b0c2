"""Which numbers of the kernel's a configuration uses: of queues, and of the group that tells of connections.

Owns how they follow from `[gateway] queue`: two queues for datapath rewrite, one more for offload.
"""

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
    """The datapaths that its virtual servers use, each once."""
    return list(dict.fromkeys(virtual.datapath for virtual in config.virtuals))
