"""The soak: mixed traffic for a long time through a gateway that suffers faults, and books that must agree.

`python -m tests.soak --seed 1 --minutes 60 --datapath rewrite`; `run.sh` installs what that needs. All
is made in network namespaces of its own. `report-DATAPATH.md` is what the last long run came to.

    site      the laboratory, the gateway's configuration, servers and clients
    visitors  the clients' traffic, in a process a client: they write down what became of everything
    hostile   a client that sends damaged packets
    faults    what is done to the gateway and the servers
    books     what visitors, servers and gateway have counted, compared
    gauge     memory and descriptors
    story     one run: stretches with faults, calm ones, and the rests between them at which all is compared
    report    what it came to
"""
