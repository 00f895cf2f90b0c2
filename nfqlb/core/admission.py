"""Which states of a real server admit which connections.

Owns one table: what an operator set, what was found out, and what each state means (A7, A41; the
states are those of LocalDirector's own MIB). The patent has three (R039): in service, out of
service, failed; `patent` says which of them a state is.
"""

from enum import Enum


class ServerState(Enum):
    """A real server's state; the members' values are one row each.

    `new`: takes clients without a sticky entry. `sticky`: takes clients that are bound to it.
    Connections that exist go on in every state; what becomes of a failed server's is
    `on_failure`. `operator`: can be set by hand.
    """

    #                 shown             patent            new    sticky operator
    IN_SERVICE     = ("in-service",     "in service",     True,  True,  True)  # fmt: skip
    STICKY_ONLY    = ("sticky-only",    "in service",     False, True,  True)  # fmt: skip
    MAINTENANCE    = ("maintenance",    "out of service", False, False, True)  # fmt: skip
    OUT_OF_SERVICE = ("out-of-service", "out of service", False, False, True)  # fmt: skip
    MAX_CAPACITY   = ("max-capacity",   "in service",     False, False, False)  # fmt: skip
    FAILED         = ("failed",         "failed",         False, False, False)  # fmt: skip
    TESTING        = ("testing",        "failed",         False, False, False)  # fmt: skip
    DRAINING       = ("draining",       "out of service", False, False, False)  # fmt: skip

    __hash__ = object.__hash__

    def __init__(self, shown: str, patent: str, new: bool, sticky: bool, operator: bool) -> None:
        self.shown = shown
        self.patent = patent
        self.new = new
        self.sticky = sticky
        self.operator = operator


BY_NAME: dict[str, ServerState] = {state.shown: state for state in ServerState}
