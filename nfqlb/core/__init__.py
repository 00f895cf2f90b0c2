"""The decision core: packets' facts in, verdicts out. No sockets, clocks, files or logging.

- `spec`: what the operator asked for, frozen.
- `director`: the façade; decides every packet that opens, changes or ends a connection.
- `placement`: which server a connection gets, first and, where that does not answer, again.
- `selection`, `startup`: the order of the questions by which a server is chosen (figs 7A, 7B, 8).
- `server`: virtual servers, real servers and the links between them. `destinations`: which one is meant.
- `connection`, `states`, `table`: connections, their states as a table, and the bounded index.
- `meaning`: what a segment means for its connection.
- `reject`: what becomes of packets without a connection. `outage`: of a failed server's connections.
- `health`, `failure`: what real connections tell of a server. `response`: how long it takes to answer.
- `admission`, `operation`: states and what they admit; what operators set. `chronicle`: what has changed.
- `fpa`, `scope`: stickiness. `doubts`: servers that did not take a client.
- `succession`, `reconfigure`: a new director takes over, and one follows another configuration (`former`).
- `schedulers`: one scheduler a file, behind one base class and a registry. `shadow`: one that is not obeyed.
- `decision`, `explanation`: what every choice was made from, and the reasons, derived when asked for.
- `snapshot`: immutable pictures of all that, the only thing that is shown. `plural`: numbers in words.

Time is an argument (`now`, seconds of a monotonic clock), never read here.
"""
