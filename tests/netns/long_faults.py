"""The long forms of two tests: `python -m tests.netns.long_faults worker|reload [TIMES] [DATAPATH]`.

`worker` kills the worker TIMES times (20), `reload` reloads TIMES times (100), every other time a file in
which nothing is different, each in a load of connections that stay and connections that are made. Says what
it came to; status 1 where a request failed or a connection has another server than before.
"""

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nfqlb.demo.appliance import Appliance, balancing, virtual
from nfqlb.demo.lab import VIP, Lab
from nfqlb.runtime.protocol import ControlError
from tests.netns.asking import holding, queued, summary, wait_until
from tests.netns.both import Datapath, configuration, serving

_PAUSE = 0.5  # seconds between two faults
_ASK = 10  # faults between two requests over held connections: the servers give up idle ones after 75 seconds


@contextmanager
def loads(lab: Lab) -> Iterator[list[str]]:
    """Two loads for the time of the context; gets what each said at its end."""
    programs = [
        lab.client.start("wrk", "-t1", "-c10", "-d3600", "--timeout", "8s", *words, f"http://{VIP}/")
        for words in ((), ("-H", "Connection: close"))
    ]
    said: list[str] = []
    yield said
    for program in programs:
        program.stop(signal.SIGINT, timeout=15.0)
        said.append(program.stdout)


def kill_worker(gateway: Appliance, _number: int) -> float:
    """Seconds until another one answers."""
    killed, begun = gateway.kill_worker(), time.monotonic()
    while True:
        try:
            if gateway.worker != killed:
                return time.monotonic() - begun
        except ControlError:
            time.sleep(0.002)


def reload(gateway: Appliance, number: int) -> float:
    """Seconds that a reload takes; every other one changes servers, weights and schedulers."""
    names = ["web1", "web2", "web3"]
    kept = names if number % 4 < 2 else names[: 2 + number % 8 // 4]
    scheduler = ("round-robin", "least-connections", "maglev")[number // 2 % 3]
    reals = {"web2": f"weight = {1 + number // 2 % 4}"}
    web = virtual("web", kept, scheduler=scheduler)
    gateway.config.write_text(configuration(gateway.lab, web, reals=reals))
    begun = time.monotonic()
    gateway.ask("reload")
    return time.monotonic() - begun


FAULTS: dict[str, tuple[Callable[[Appliance, int], float], int]] = {
    "worker": (kill_worker, 20),
    "reload": (reload, 100),
}


def main(words: list[str]) -> int:
    """Returns the exit status."""
    act, usual = FAULTS[words[0]]
    times = int(words[1]) if len(words) > 1 else usual
    datapath: Datapath = "offload" if "offload" in words else "rewrite"
    with serving(datapath, clients=1, servers=3) as lab:
        names = [server.name for server in lab.servers]
        config = configuration(lab, virtual("web", names, scheduler="round-robin"))
        with balancing(lab, config) as gateway, holding(lab.client, 30) as held:
            first = held.rounds()[0]
            took: list[float] = []
            moved = 0
            with loads(lab) as said:
                begun = time.monotonic()
                for number in range(times):
                    time.sleep(_PAUSE)
                    took.append(act(gateway, number))
                    if number % _ASK == _ASK - 1:
                        moved += [each.server for each in held.again()] != [each.server for each in first]
                lasted = time.monotonic() - begun
            total = summary(gateway)["connections"]["total"]
            wait_until(lambda: queued(lab) == 0, "empty queues")
    for text in said:
        sys.stdout.write(text)
    failed = sum("Socket errors" in text or "requests in" not in text for text in said)
    spent = f"took {statistics.median(took) * 1000:.0f} ms (most {max(took) * 1000:.0f})"
    stayed = "moved" if moved else "as before"
    sys.stdout.write(
        f"{words[0]}, {datapath}: {times} times in {lasted:.0f} s; {spent}; loads with a failed request: "
        f"{failed}; held connections {stayed}; {total:,} connections\n"
    )
    return 1 if failed or moved else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(sys.argv[1:]))
