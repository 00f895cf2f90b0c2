"""How many files this process may open: enough for all who may come, or it does not begin.

Where it has too few it cannot even start iptables, to take out what it has put in.
"""

import contextlib
import resource

from nfqlb.netfilter.errors import KernelError

NEEDED = 256
"""Some twenty of its own; more for clients of the control socket and of metrics, and for children."""


def have_enough() -> None:
    """Raise the limit of this process where it may. Raises KernelError where it stays too low."""
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if usual != resource.RLIM_INFINITY and usual < NEEDED:
        wanted = NEEDED if most == resource.RLIM_INFINITY else min(most, NEEDED)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            usual = wanted
    if usual != resource.RLIM_INFINITY and usual < NEEDED:
        raise KernelError(
            f"this process may have {usual} files open, nfqlb needs {NEEDED}: raise the limit, "
            "with `ulimit -n` or LimitNOFILE= in its unit"
        )
