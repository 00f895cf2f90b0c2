"""How a gateway's rules go at its end, whoever uses iptables at that moment.

What stays in the kernel is said, with what takes it out: the next start does, or `nfqlb rules remove`.
"""

import logging
import time
from collections.abc import Callable

from nfqlb.netfilter import rules
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import BusyError, Iptables

logger = logging.getLogger(__name__)

_PATIENCE = 40.0  # seconds for others to be done; less than a stop may take in our unit


def withdraw(clock: Callable[[], float] = time.monotonic) -> list[str]:
    """Take our rules out; returns a line for each thing removed. Raises KernelError where they stay."""
    deadline = clock() + _PATIENCE
    while True:
        try:
            if not Iptables().installed:
                raise KernelError("iptables is not installed any more")
            done = rules.withdraw()
        except BusyError as error:
            if clock() >= deadline:
                raise _they_stay(error) from None
            logger.info("%s", error)
        except KernelError as error:
            raise _they_stay(error) from None
        else:
            return done


def _they_stay(error: KernelError) -> KernelError:
    return KernelError(f"the rules stay: {error}; `nfqlb rules remove` takes them out, or the next start")
