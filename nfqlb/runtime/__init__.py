"""Processes, signals, clocks and files: what keeps the gateway running."""
