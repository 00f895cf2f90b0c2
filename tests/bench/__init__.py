"""The side-by-side benchmark of nfqlb on the real kernel.

Run by hand, as root, with `tests/bench/run.sh`; it is no test and can neither pass nor fail.

- `variants`  the ways from a client to a web server that are compared, each on a gateway of its own
- `contender` one variant up and running in a laboratory of its own, with processor time and memory
- `load`      what is measured: wrk, downloads, paced requests; `client` is its own client program
- `rounds`    the order of measuring
- `stats`     medians and paired ratios with a bootstrap interval
- `report`    the tables, the JSON and the Markdown
- `micro`     what a packet and a decision cost inside the worker, without the kernel
"""
