"""The decision core: packets' facts in, verdicts out. No sockets, clocks, files or logging.

- `spec`: what the operator asked for, frozen.
- `director`: the façade; decides every packet that opens, changes or ends a connection.
- `placement`: which server a connection gets, first and, where that does not answer, again.
- `server`: virtual servers, real servers and the links between them.
- `connection`, `states`, `table`: connections, their states as a table, and the bounded index.
- `reject`: what becomes of packets without a connection. `outage`: of a failed server's connections.
- `fpa`: stickiness.
- `schedulers`: one scheduler a file, behind one base class and a registry.
- `decision`, `explanation`: what every choice was made from, and the reasons, derived when asked for.
- `snapshot`: immutable pictures of all that, the only thing that is shown.

Time is an argument (`now`, seconds of a monotonic clock), never read here.
"""
