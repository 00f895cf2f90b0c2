"""A load-balancing gateway for Linux: many servers behind one address, over NFQUEUE."""

__version__ = "0.1.0"
