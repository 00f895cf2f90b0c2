"""Hostile input: packets, netlink messages, capture files and requests, made from bytes and damaged."""
