"""Maximum connections, weight 0, and real servers that several virtual servers share."""

from nfqlb.core.verdict import Drop
from tests.core.recount import audit
from tests.core.scenario import Scenario, real, reals, virtual


def test_a_full_server_gets_no_new_connection() -> None:
    """R045, R144, R184 (A28): it is passed over until one of its connections ends."""
    lab = Scenario(virtual("web", "ab"), [real("a", max_connections=2), real("b")])
    calls = [lab.connect() for _ in range(6)]
    assert [call.server for call in calls] == ["a", "b", "a", "b", "b", "b"]
    calls[0].close()
    assert [lab.connect().server for _ in range(2)] == ["a", "b"]
    assert lab.loads()["a"] == 2


def test_a_full_server_says_so() -> None:
    """R039, R045, R184 (A41): its state, since when, and why."""
    lab = Scenario(virtual("web", "ab"), [real("a", max_connections=1), real("b")])
    lab.wait(50)
    call = lab.connect()
    lab.wait(7)
    seen = lab.real("a")
    assert (seen.state, seen.since, seen.max_connections) == ("max-capacity", 7.0, 1)
    assert seen.reason == "at its maximum of 1 connection"
    call.reset()
    seen = lab.real("a")
    assert (seen.state, seen.since, seen.reason) == ("in-service", 0.0, "")


def test_a_full_server_keeps_what_it_has() -> None:
    """R045, R110, R111: repeated SYNs and segments of its connections still reach it."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=1)])
    call = lab.dial()
    assert call.syn().server == "a"
    assert call.syn_ack().ack().says().hears().server == "a"


def test_with_everybody_full_a_syn_is_refused() -> None:
    """R113, R184 (A28): dropped and counted, so that the client repeats it."""
    lab = Scenario(virtual("web", "ab"), [real("a", max_connections=1), real("b", max_connections=1)])
    calls = [lab.connect(), lab.connect()]
    late = lab.dial()
    assert late.refused is Drop.NO_SERVER
    assert lab.drops() == {"no-server": 1}
    calls[1].close()
    assert late.syn().server == "b"
    audit(lab.director)


def test_closed_connections_do_not_fill_a_server() -> None:
    """R045, R129: what lingers for late packets is not counted."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=1)])
    for _ in range(5):
        lab.connect().close()
    assert lab.loads() == {"a": 0}
    assert len(lab.connections()) == 5


def test_a_new_attempt_takes_the_place_of_the_half_open_one() -> None:
    """R045, R111 (A18): a full server's only half-open connection, tried anew from the same port."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=1)])
    call = lab.dial(isn=1)
    assert call.syn(isn=9_000_000).server == "a"
    assert lab.loads() == {"a": 1}


def test_half_open_connections_count_towards_the_limit() -> None:
    """R045, R125: a SYN is a connection."""
    lab = Scenario(virtual("web", "a"), [real("a", max_connections=1)])
    lab.dial()
    assert lab.dial().refused is Drop.NO_SERVER


def test_weight_0_takes_no_new_clients() -> None:
    """R048 (A14): quiesced; existing connections go on."""
    servers = [real("a", weight=0), real("b")]
    lab = Scenario(virtual("web", "ab", scheduler="weighted-least-connections"), servers)
    assert [lab.connect().server for _ in range(4)] == ["b"] * 4
    seen = lab.real("a")
    assert (seen.state, seen.weight, seen.reason) == ("in-service", 0, "weight 0: no new clients")


def test_everybody_with_weight_0_is_nobody() -> None:
    """R048, R144 (A14): refused and counted."""
    lab = Scenario(virtual("web", "a"), [real("a", weight=0)])
    assert lab.dial().refused is Drop.NO_SERVER


def test_virtual_servers_share_real_servers() -> None:
    """R008-R010, R033, R070: counts are the real server's, each link keeps its own beside (A35)."""
    lab = Scenario(
        [
            virtual("web", ["a:8080", "b:8080"], scheduler="least-connections"),
            virtual("tls", ["a:8443", "b:8443"], port=443, scheduler="least-connections"),
        ],
        reals("ab"),
    )
    calls = [lab.connect("web") for _ in range(3)]
    assert [call.server for call in calls] == ["a", "b", "a"]
    assert lab.connect("tls").server == "b", "the web connections count here too"
    assert lab.loads() == {"a": 2, "b": 2}
    assert [each.connections for each in lab.virtual("web").servers] == [2, 1]
    assert [each.connections for each in lab.virtual("tls").servers] == [0, 1]
    assert lab.real("a").virtuals == ("web", "tls")
    assert (lab.virtual("web").connections, lab.virtual("tls").connections) == (3, 1)
    audit(lab.director)


def test_a_limit_holds_across_virtual_servers() -> None:
    """R010, R045 (A35): the machine is full, whoever filled it."""
    lab = Scenario([virtual("web", "a"), virtual("tls", "a", port=443)], [real("a", max_connections=2)])
    lab.connect("web")
    lab.connect("tls")
    assert lab.dial("web").refused is Drop.NO_SERVER
    assert lab.dial("tls").refused is Drop.NO_SERVER


def test_one_machine_may_serve_several_ports_of_one_virtual_server() -> None:
    """R010, R044, R049, R068-R073: each port is a link of its own."""
    lab = Scenario(virtual("web", ["a:8080", "a:8081"]), reals("a"))
    ports = [lab.connect().connection.link.port for _ in range(4)]
    assert ports == [8080, 8081, 8080, 8081]
    assert [each.port for each in lab.virtual().servers] == [8080, 8081]
    assert lab.real("a").virtuals == ("web",)
    assert lab.loads() == {"a": 4}
    audit(lab.director)


def test_each_virtual_server_keeps_its_own_place_in_the_order() -> None:
    """R008, R023, R024: the last used link is the virtual server's."""
    lab = Scenario([virtual("web", "ab"), virtual("tls", "ab", port=443)], reals("ab"))
    assert "".join(lab.connect(to).server for to in ("web", "web", "tls", "web", "tls")) == "abaab"


def test_several_virtual_addresses() -> None:
    """R008: a site may have several, with one virtual server for each."""
    sites = [virtual(f"site{number}", "ab", address=f"203.0.113.{number}") for number in range(1, 5)]
    lab = Scenario(sites, reals("ab"))
    for site in sites:
        assert lab.connect(site.name).connection.link.virtual.spec is site
