"""Which virtual server a packet is for.

Owns `Destinations`: the virtual servers by what clients send to. An address and port of its own comes
before every port of the address; the configuration keeps both from standing side by side.
"""

from collections.abc import Iterable

from nfqlb.core.keys import destination_of, every_port_of, service
from nfqlb.core.server import VirtualServer


class Destinations:
    """The virtual servers of one director, by address, protocol and port."""

    def __init__(self, virtuals: Iterable[VirtualServer]) -> None:
        self._virtuals = {
            service(
                virtual.spec.address.packed,
                b"" if virtual.port is None else virtual.port.to_bytes(2, "big"),
                virtual.protocol,
            ): virtual
            for virtual in virtuals
        }

    def find(self, inbound: bytes) -> VirtualServer | None:
        """The virtual server that a packet with this inbound key is for, None if it is for none (R108)."""
        return self._virtuals.get(destination_of(inbound)) or self._virtuals.get(every_port_of(inbound))
