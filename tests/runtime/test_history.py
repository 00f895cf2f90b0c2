"""Five minutes of values, one a second."""

from nfqlb.runtime.history import LENGTH, History, moment
from nfqlb.runtime.protocol import JSON, JSONObject

GATEWAY = ("gateway", "")


def snapshot(bytes_in: int | None = None) -> JSONObject:
    traffic: JSON = None if bytes_in is None else {"bytes_in": bytes_in, "bytes_out": 2 * bytes_in}
    return {
        "connections": {"now": 3, "rate": 1.5},
        "virtuals": [{"name": "web", "rate": 1.0, "connections": 2, "traffic": traffic}],
        "reals": [{"name": "a", "rate": None, "connections": 2, "response_s": 0.25}],
    }


def test_what_a_snapshot_leaves() -> None:
    assert moment(snapshot(), None, 10.0).values == {
        GATEWAY: (1.5, 3, None, None),
        ("virtual", "web"): (1.0, 2, None, None),
        ("real", "a"): (None, 2, 0.25),
    }


def test_bytes_a_second_are_known_from_the_second_moment_on() -> None:
    first = moment(snapshot(1000), None, 10.0)
    second = moment(snapshot(1500), first, 12.0)
    assert first.values["virtual", "web"] == (1.0, 2, None, None)
    assert second.values["virtual", "web"] == (1.0, 2, 250, 500)
    assert second.values[GATEWAY] == (1.5, 3, 250, 500)


def test_the_oldest_value_comes_first_and_unknown_ones_are_null() -> None:
    history = History()
    for second in range(3):
        history.append(100.0 + second, {("real", "a"): (None, float(second), None)})
    assert history.document("real", "a") == {
        "of": "real", "name": "a", "at": 102.0, "step_s": 1.0,
        "rate": [None, None, None], "connections": [0.0, 1.0, 2.0], "response_s": [None, None, None],
    }  # fmt: skip


def test_the_ring_keeps_the_newest() -> None:
    history = History()
    for second in range(LENGTH + 7):
        history.append(float(second), {GATEWAY: (float(second), None, None, None)})
    document = history.document("gateway", "")
    assert document is not None
    assert document["rate"] == [float(second) for second in range(7, LENGTH + 7)]


def test_a_server_that_comes_later_was_not_known_before_and_one_that_leaves_is_forgotten() -> None:
    history = History()
    history.append(1.0, {("real", "a"): (1.0, None, None)})
    history.append(2.0, {("real", "b"): (2.0, None, None)})
    assert history.names("real") == ["b"]
    assert history.document("real", "a") is None
    document = history.document("real", "b")
    assert document is not None
    assert document["rate"] == [None, 2.0]
