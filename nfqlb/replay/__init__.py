"""A capture run through the core with other settings: what would have gone where? Pure.

- `evidence`: what a capture shows, and where it shows that each connection went.
- `rerun`: the packets, one after the other, through a director of the new configuration.
- `mirror`: beside it, another director that places connections as the capture did, for how fast servers
  answered and how many connections they had.
- `outcome`: what came of it, as one document.
"""
