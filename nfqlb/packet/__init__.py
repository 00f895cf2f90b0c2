"""The codec: bytes of a packet to facts, and a decision back into its bytes. Pure.

- `path`: what happens to a packet, top to bottom; the short path of TCP over IPv4 is here.
- `segments6`, `datagrams`: the short paths of TCP over IPv6 and of UDP.
- `decode`, `decode6`: everything unusual, to `facts`.
- `translate`: addresses, ports and checksums, changed in place.
- `frame`, `pcap`, `pcapng`, `sight`: capture files, and what their frames say.
- `reply`: resets and ICMP errors to clients whose packets are refused.
"""
