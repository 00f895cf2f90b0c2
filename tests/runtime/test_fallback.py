"""Who would be given new connections without a gateway (F37), by what a snapshot says."""

from dataclasses import replace
from ipaddress import ip_address
from selectors import DefaultSelector
from typing import Any

from nfqlb.config.marks import LinkMarks
from nfqlb.core.director import Director
from nfqlb.core.spec import Config, Gateway, Real, Server, Virtual
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.fallback import Share
from nfqlb.runtime import views
from nfqlb.runtime.fallback import Fallback, marked, shares
from nfqlb.runtime.protocol import JSONObject

WEB = Virtual(
    "web",
    ip_address("192.0.2.100"),
    (Server("a", 80), Server("b", 80)),
    port=80,
    backup="c",
    datapath="offload",
)
CONFIG = Config(
    Gateway(("eth0",), ("eth1",)),
    (
        Real("a", ip_address("10.0.0.1"), weight=1),
        Real("b", ip_address("10.0.0.2"), weight=3),
        Real("c", ip_address("10.0.0.3")),
    ),
    (WEB, replace(WEB, name="slow", datapath="rewrite", port=81, servers=(Server("a", 80),))),
)
A, B, C = (LinkMarks(CONFIG).of(WEB, Server(name, 80)) for name in "abc")
MARKS = marked(CONFIG)


def snapshot() -> JSONObject:
    director = Director(CONFIG, now=0.0)
    return {"state": "running", "virtuals": [views.virtual(each) for each in director.virtuals(0.0)]}


def test_all_who_are_well_by_weight_and_no_backup() -> None:
    assert shares(MARKS, snapshot()) == (Share("web", ((A, 0.25), (B, 0.75))),)


def test_who_takes_no_new_ones_is_not_among_them_and_a_backup_serves_when_nobody_else_does() -> None:
    document: Any = snapshot()
    (row, _) = document["virtuals"]
    one, other, backup = row["servers"]
    one["fair_share"], other["fair_share"] = 0.0, 1.0
    assert shares(MARKS, document) == (Share("web", ((B, 1.0),)),)
    other["fair_share"], backup["fair_share"] = 0.0, 1.0
    assert shares(MARKS, document) == (Share("web", ((C, 1.0),)),)
    backup["fair_share"] = None
    assert shares(MARKS, document) == ()
    backup["fair_share"], row["state"] = 1.0, "out-of-service"
    assert shares(MARKS, document) == ()


def test_a_place_that_the_configuration_does_not_have_any_more_is_passed_over() -> None:
    document = snapshot()
    fewer = replace(CONFIG, virtuals=(replace(WEB, servers=WEB.servers[:1]),))
    mark = LinkMarks(fewer).of(WEB, WEB.servers[0])
    assert shares(marked(fewer), document) == (Share("web", ((mark, 0.25),)),)


class Follower:
    """A `Fallback` whose children are waited for; `trouble` is why they fail."""

    def __init__(self) -> None:
        self.selector = DefaultSelector()
        self.said: list[str] = []
        self.repairs = self.adopted = 0
        self.trouble = ""
        self.state: JSONObject = {}
        self.fallback = Fallback(
            CONFIG, self.selector, self._say, self.state, lambda: self.repairs, self._adopt, put=self._put
        )

    def _say(self, kind: str, name: str, text: str, *, level: str = "info") -> None:
        self.said.append(f"{kind} {name} {level}: {text}")

    def _adopt(self) -> None:
        self.adopted += 1

    def _put(self, _config: Config, _shares: object) -> None:
        if self.trouble:
            raise KernelError(self.trouble)

    def tick(self) -> bool:
        """Whether something was written."""
        self.fallback.tick()
        wrote = self.fallback.pid is not None
        while self.fallback.pid is not None:
            for key, mask in self.selector.select(5):
                key.data(mask)
        return wrote


def test_it_is_written_when_something_has_changed_and_only_then() -> None:
    follower = Follower()
    assert not follower.tick(), "nobody has said anything yet"
    assert follower.state == {"ready": False, "error": ""}
    follower.fallback.look(snapshot())
    assert [follower.tick(), follower.tick()] == [True, False]
    assert follower.state == {"ready": True, "error": ""}
    follower.fallback.look({**snapshot(), "state": "degraded", "virtuals": []})
    assert not follower.tick(), "the last that a living worker said counts"
    assert follower.adopted == 0
    follower.repairs += 1
    assert [follower.tick(), follower.tick()] == [True, False]
    assert follower.adopted == 1, "the kernel may have spread connections alone meanwhile"
    follower.fallback.follow(CONFIG)
    assert not follower.tick(), "who is well by the new configuration is not known yet"
    follower.fallback.look(snapshot())
    assert follower.tick()
    follower.selector.close()


def test_what_fails_is_said_once_and_tried_again_later() -> None:
    follower = Follower()
    follower.trouble = "no statistic here"
    follower.fallback.look(snapshot())
    assert sum(follower.tick() for _ in range(61)) == 3
    assert follower.state == {"ready": False, "error": "no statistic here"}
    follower.trouble = ""
    assert sum(follower.tick() for _ in range(30)) == 1
    assert follower.state == {"ready": True, "error": ""}
    assert len(follower.said) == 2
    follower.selector.close()
