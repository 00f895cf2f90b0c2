"""`nfqlb top`: the running gateway on a terminal, a client of the control socket like any other.

Pure parts first: `model` (a snapshot's document as rows), `series` (what sparklines are drawn from), `state`
(what the user looks at), `panes` and `actions` (what a key does), `views` (state in, lines out). Around them
`keys` and `terminal` (bytes and modes of the terminal), `link` (the socket, without waiting) and `loop`.
Nothing here is ever in the way of a packet: the gateway answers from what it has counted anyway.
"""
