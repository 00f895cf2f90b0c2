"""A full connection table of the kernel, by hand: `python -m tests.netns.full_table [rewrite|offload]`.

It fills that of a gateway's namespace, up to nf_conntrack_max as it is on this machine (100 MB of memory with
262,144; nothing of other namespaces changes), and asks meanwhile and after. Status 1 where a server is held
to have failed, an established connection ends, nobody is told, or nobody is served once there is room.
"""

import sys
import time

from nfqlb.demo.appliance import Appliance, balancing, python_path, virtual
from nfqlb.demo.lab import Lab
from nfqlb.demo.web import serve
from tests.netns.asking import holding, rows
from tests.netns.both import Bench, Datapath, configuration

_LASTS = 40  # seconds


def room(lab: Lab) -> tuple[int, int]:
    """How many entries there are, and how many there may be."""
    names = (f"/proc/sys/net/netfilter/nf_conntrack_{name}" for name in ("count", "max"))
    now, limit = map(int, lab.gateway.run("cat", *names).stdout.split())
    return now, limit


def served(lab: Lab) -> bool:
    """Whether three requests of each client are answered within six seconds."""
    words = ("curl", "-sS", "--max-time", "6", "http://192.0.2.100/")
    programs = [client.start(*words) for client in lab.clients for _ in range(3)]
    return [program.wait(30) for program in programs].count(0) == len(programs)


def verdict(gateway: Appliance) -> str:
    snapshot = gateway.ask("snapshot")
    assert isinstance(snapshot, dict)
    return str(snapshot["verdict"])


def main(datapath: Datapath) -> int:
    """Returns the exit status."""
    with Bench(datapath, clients=2, servers=3) as lab:
        for server in lab.servers:
            serve(lab, server)
        names = [server.name for server in lab.servers]
        config = configuration(lab, virtual("web", names, scheduler="round-robin"))
        with balancing(lab, config) as gateway, holding(lab.client, 5) as held:
            first = held.rounds()[0]
            _, limit = room(lab)
            words = (sys.executable, "tests/netns/crowd.py", str(limit), str(_LASTS))
            lab.gateway.start(*words, environment=python_path()).wait(_LASTS)
            refused = not served(lab)
            said = verdict(gateway)
            stayed = held.again() == first
            full = time.monotonic()
            while not served(lab) and time.monotonic() - full < 2 * _LASTS:
                pass
            events = [str(row["text"]) for row in rows(gateway, "events", limit=50)]
            failed = [text for text in events if "failed" in text]
    served_after = time.monotonic() - full
    failed = failed or ["none"]
    told = "kernel's connection table full" in said and any("table is full" in text for text in events)
    sys.stdout.write(
        f"{datapath}, {limit:,} entries: new connections {'lost' if refused else 'made'}, told: {said}; held "
        f"ones {'go on' if stayed else 'ended'}; servers held to have failed: {failed[0]}; served after "
        f"{served_after:.0f} s\n"
    )
    return 0 if refused and told and stayed and failed == ["none"] else 1


if __name__ == "__main__":
    sys.exit(main("offload" if "offload" in sys.argv else "rewrite"))
