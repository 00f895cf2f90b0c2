"""Which virtual server a packet is for, or from.

Owns `Destinations`: the virtual servers by what clients send to, and by the servers behind them. An address
and port of its own comes before every port of the address; the configuration keeps both from standing side
by side.
"""

from collections.abc import Iterable

from nfqlb.core.keys import destination_of, every_port_of, flipped, reverse_key, server_of, service
from nfqlb.core.server import Link, VirtualServer


class Destinations:
    """The virtual servers of one director, by address, protocol and port."""

    def __init__(self, virtuals: Iterable[VirtualServer]) -> None:
        self._virtuals: dict[bytes, VirtualServer] = {}
        self._behind: dict[bytes, VirtualServer | None] = {}
        self.follow(virtuals)

    def follow(self, virtuals: Iterable[VirtualServer]) -> None:
        """These are the virtual servers from now on."""
        virtuals = list(virtuals)
        self._behind = {}
        for virtual in virtuals:
            for link in (*virtual.everybody, *virtual.leaving):
                place = service(link.real.address, link.inbound.port, virtual.protocol)
                known = self._behind.setdefault(place, virtual)
                self._behind[place] = virtual if known is virtual else None
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

    def behind(self, outbound: bytes) -> VirtualServer | None:
        """The one virtual server that a server's packet with this key can be of.

        None where its port stands behind none, or behind several.
        """
        key = flipped(outbound)
        places = destination_of(key), every_port_of(key)
        found = [self._behind[place] for place in places if place in self._behind]
        return found[0] if len(found) == 1 else None

    def link_of(self, inbound: bytes, server: bytes) -> Link | None:
        """The link by which a connection with this inbound key goes to a real server's address and port.

        A port's own virtual server may be younger than the connection, and that of every port still be there.
        """
        for name in (destination_of(inbound), every_port_of(inbound)):
            virtual = self._virtuals.get(name)
            link = virtual.find_link(server) if virtual is not None else None
            if link is not None and server_of(reverse_key(inbound, link)) == server:
                return link
        return None
