"""The codec: bytes of a packet to facts, and a decision back into its bytes. Pure.

- `path`: what happens to a packet, top to bottom; the short path of established flows is here.
- `decode`: everything unusual, by dpkt.
- `translate`: addresses, ports and checksums, changed in place.
- `reply`: resets and ICMP errors to clients whose packets are refused.
"""
