"""The kernel edge: the queues, the rules, the host. No decisions."""
