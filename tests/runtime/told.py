"""An explained decision for the tests of what is shown of one."""

from dataclasses import replace
from ipaddress import ip_address

from nfqlb.core.snapshot import CandidateSnapshot, DecisionSnapshot, StickyAnswer

WEB2 = CandidateSnapshot(
    real="web2",
    port=8080,
    stands_for=None,
    state="in-service",
    state_age=60.0,
    weight=2,
    connections=5,
    max_connections=0,
    unanswered=1,
    syn_limit=5,
    response=0.03,
    ratio=0.01,
    response_age=2.0,
    predicted=-0.45,
    indicium=2.5,
    reason="chosen",
)
WEB1 = replace(WEB2, real="web1", port=80, weight=1, connections=3, indicium=3.0, reason="worse")
WEB3 = replace(WEB1, real="web3", state="failed", state_age=120.0, indicium=None, reason="failed")


def a_decision(**changes: object) -> DecisionSnapshot:
    """A client without a sticky entry went to the best of two servers, while the third had failed."""
    usual = DecisionSnapshot(
        age=1.5,
        virtual="shop",
        address=ip_address("192.0.2.10"),
        port=80,
        protocol="tcp",
        client=ip_address("198.51.100.7"),
        client_port=40000,
        chosen="web2",
        chosen_port=8080,
        refused=None,
        unanswered_by=None,
        by="scheduler",
        scheduler="weighted-least-connections",
        set_aside=None,
        last="web1",
        equal=False,
        note=(),
        sticky=StickyAnswer("none", None, None, "web2"),
        candidates=(WEB2, WEB1, WEB3),
        others={},
    )
    return replace(usual, **changes)  # type: ignore[arg-type]  # whatever a test wants to differ
