"""What keys do to the state, without a terminal and without a gateway."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.operator.dashboard.actions import Deed, Do, Explain, Order, press
from nfqlb.operator.dashboard.model import snapshot
from nfqlb.operator.dashboard.panes import focused, panes
from nfqlb.operator.dashboard.rows import connections, decisions, events
from nfqlb.operator.dashboard.state import FEW, TABS, Confirming, Fetch, Listing, Page, State
from nfqlb.operator.dashboard.views.frame import frame
from tests.operator.dashboard.gateway import RECORDED, many, recorded

PRESSED = [*"12345qpsS/+-demoiwyjkgGh?x7", "enter", "esc", "tab", "pgdn", "end", "up", "backspace"]


def opened(number: int = 0, *, read_only: bool = False) -> State:
    state = State(read_only=read_only, now=1000.0)
    state.snapshot = snapshot(many(number) if number else recorded())
    state.connections = connections(RECORDED["connections"])
    state.events, state.decisions = events(RECORDED["events"]), decisions(RECORDED["decisions"])
    return state


def keys(state: State, *pressed: str) -> list[Deed]:
    """What all these keys come to, a picture after each."""
    deeds = []
    for key in pressed:
        deeds += press(state, key)
        frame(state, 100, 30)
    return deeds


def chosen(state: State) -> object:
    pane = focused(state)
    return None if pane is None else pane.keys[pane.listing.index]


def test_the_chosen_row_stays_chosen_when_others_pass_it() -> None:
    state = opened()
    keys(state, "3", "j")
    assert chosen(state) == "web2"
    document = recorded()
    document["reals"].reverse()
    document["reals"].append({**document["reals"][0], "name": "web0"})
    state.snapshot = snapshot(document)
    frame(state, 100, 30)
    assert chosen(state) == "web2"
    document["reals"] = [row for row in document["reals"] if row["name"] != "web2"]
    state.snapshot = snapshot(document)
    frame(state, 100, 30)
    assert chosen(state) == "web1"  # who is in its place


def test_a_filter_holds_for_events_and_decisions_alike() -> None:
    state = opened()
    keys(state, "5", "/", *"web1")
    for listing in ("events", "decisions"):
        assert state.listing(listing).pattern == "web1"
    keys(state, "enter", "tab", "esc")
    for listing in ("events", "decisions"):
        assert state.listing(listing).pattern == ""
    keys(state, "2", "enter", "/", *"web1")
    assert (state.listing("servers").pattern, state.listing("connections").pattern) == ("web1", "")


@pytest.mark.parametrize(
    "page", [*(Page(kind) for kind in TABS), Page("virtual", "shop"), Page("real", "web1")]
)
def test_no_title_of_a_column_is_cut(page: Page) -> None:
    """Nor is that of the column that rows are sorted by, which has a mark."""
    state = opened()
    state.page = page
    for width in range(80, 161):
        for pane in panes(state):
            for column in ("", *(each.title for each in pane.sortable())):
                pane.listing.sort = column
                heading = "".join(segment.text for segment in pane.lines(state, width, focused=False)[0])
                assert state.look.more not in heading, (width, heading)


def test_the_list_scrolls_no_further_than_it_must() -> None:
    listing = Listing()
    rows = [str(number) for number in range(100)]
    listing.settle(rows, 10)
    for _ in range(9):
        listing.move(rows, 1)
        listing.settle(rows, 10)
    assert (listing.index, listing.top) == (9, 0)
    listing.move(rows, 1)
    listing.settle(rows, 10)
    assert (listing.index, listing.top) == (10, 1)
    listing.move(rows, 1000)
    listing.settle(rows, 10)
    assert (listing.index, listing.top) == (99, 90)
    listing.settle(rows[:5], 10)
    assert (listing.index, listing.top) == (4, 0)
    listing.settle([], 10)
    listing.move([], 1)
    assert (listing.index, listing.selected) == (0, "")


@pytest.mark.parametrize("key", ["n", "\x1b", "enter", "esc", "Y", "d", " "])
def test_only_y_says_yes(key: str) -> None:
    state = opened()
    assert keys(state, "3", "d", key) == [Do("refresh")]
    assert state.prompt is None
    assert keys(state, "d", "y") == [Order("set-real", {"name": "web1", "state": "sticky-only"})]


def test_the_question_is_about_the_server_that_was_chosen_then() -> None:
    """Rows may change places between the question and the answer."""
    state = opened()
    keys(state, "3", "d")
    document = recorded()
    document["reals"].reverse()
    state.snapshot = snapshot(document)
    assert isinstance(state.prompt, Confirming)
    assert "web1" in state.prompt.question
    assert keys(state, "y") == [Order("set-real", {"name": "web1", "state": "sticky-only"})]


@pytest.mark.parametrize("pressed", ["d", "m", "o", "w0"])
def test_the_question_says_who_is_left_without_a_server(pressed: str) -> None:
    """What cannot be taken back by a second key; in place of what is known anyway."""
    state = opened()
    document = recorded()
    for virtual in document["virtuals"]:
        for server in virtual["servers"]:
            server["fair_share"] = 1.0 if server["real"] == "web2" else 0.0
    state.snapshot = snapshot(document)

    def asked(*before: str) -> str:
        keys(state, "3", "home", *before, *pressed, *(["enter"] if pressed == "w0" else []))
        assert isinstance(state.prompt, Confirming)
        question = state.prompt.question
        keys(state, "n")
        return question

    assert "no other server" not in asked()
    assert asked("j").endswith("? www and shop have no other server: new clients will be refused.")
    document["virtuals"][0]["state"] = "out-of-service"
    state.snapshot = snapshot(document)
    assert asked("j").endswith("? shop has no other server: new clients will be refused.")
    document["virtuals"][1]["servers"][2]["backup"] = True
    state.snapshot = snapshot(document)
    assert "no other server" not in asked("j")


def test_who_gave_an_order_is_told_in_full_on_the_narrowest_screen() -> None:
    who = "user operator (uid 1000), process 12"
    state = opened()
    state.events = events([{**RECORDED["events"][0], "who": who}])
    keys(state, "5")
    lines = ["".join(segment.text for segment in line) for line in frame(state, 80, 24)]
    assert any(line.rstrip().endswith(who) for line in lines)


@pytest.mark.parametrize("text", ["heavy", "nan", "inf", ""])
def test_no_weight(text: str) -> None:
    state = opened()
    assert keys(state, "3", "w", *text, "enter", "y") == [Do("refresh")]
    assert state.prompt is None


def test_typing_into_a_prompt_does_nothing_else() -> None:
    """`q` and `d` in a filter are letters."""
    state = opened()
    assert keys(state, "3", "/", *"qd", "backspace", "clear", *"WEB2") == [Do("refresh")]
    pane = focused(state)
    assert pane is not None
    assert list(pane.keys) == ["web2"]
    keys(state, "esc")
    assert state.prompt is None
    assert state.listing("reals").pattern == ""


def test_nothing_is_ordered_where_there_is_nothing_to_choose() -> None:
    state = opened()
    for key in ("d", "w", "i", "o", "m"):
        assert keys(state, "1", key, "y")[1:] == []
        assert "choose a server first" in state.message or state.prompt is None
    keys(state, "2", "d")
    assert "is a virtual server" in state.message
    assert state.prompt is None


def test_read_only_has_no_questions() -> None:
    state = opened(read_only=True)
    for key in "dmiow":
        keys(state, "3", key)
        assert state.prompt is None
        assert "--read-only" in state.message


def test_explained_are_connections_and_decisions() -> None:
    state = opened()
    keys(state, "4")
    state.connections = connections(RECORDED["connections"])
    assert keys(state, "e") == keys(state, "enter") == [Explain("192.0.2.21:44367", "www")]
    found = keys(state, "5", "tab", "e")[-1]
    assert isinstance(found, Explain)
    assert found.virtual == RECORDED["decisions"][0]["virtual"]
    assert keys(state, "3", "e")[1:] == []
    assert "e explains it" in state.message


def test_sorting_goes_round() -> None:
    state = opened(20)
    keys(state, "3")
    seen = []
    while True:
        keys(state, "s")
        seen.append(state.listing("reals").sort)
        if not seen[-1]:
            break
    assert seen[:2] == ["S", "REAL"]
    assert "CONN" in seen
    assert len(set(seen)) == len(seen) > 8
    state.listing("reals").sort = "CONN"
    state.listing("reals").reverse = True
    pane = focused(state)
    assert pane is not None
    assert pane.keys[0] == "web20"


def test_what_is_asked_for_is_what_is_looked_at() -> None:
    """Nothing but snapshots on pages 1 to 3; of one server's connections only those, where that is cheap."""
    state = opened()
    for key in "123":
        keys(state, key)
        assert state.fetches() == []
    keys(state, "2", "enter")
    assert state.page == Page("virtual", "www")
    assert state.fetches() == [Fetch("connections", {"limit": 1000, "virtual": "www"})]
    document = recorded()
    document["connections"]["now"] = FEW + 1
    state.snapshot = snapshot(document)
    assert state.fetches() == [Fetch("connections", {"limit": 1000})]


def test_the_worker_explains_fewer_decisions_where_there_are_many_servers() -> None:
    """It takes it 1.6 us for each server that stood to choice, and packets wait."""
    limits = []
    for number in (3, 50, 200, 1000):
        state = opened(number)
        keys(state, "5")
        limits.append(state.fetches()[1])
    assert limits == [Fetch("decisions", {"limit": limit}) for limit in (100, 60, 15, 10)]


def test_only_rows_in_sight_are_drawn() -> None:
    state = opened(200)
    keys(state, "3")
    frame(state, 200, 30)
    assert ("real", "web24") in state.seen
    assert ("real", "web25") not in state.seen


@pytest.mark.parametrize("size", [(10, 4), (20, 5), (40, 12), (80, 24), (120, 40), (300, 100)])
def test_every_page_fills_the_screen_exactly(size: tuple[int, int]) -> None:
    width, height = size
    for snapshot_of in (0, 200):
        state = opened(snapshot_of)
        for pressed in ("1", "2", "enter", "3", "enter", "4", "5", "?", "x", "3", "/", "esc", "w", "esc"):
            press(state, pressed)
            lines = frame(state, width, height)
            assert len(lines) == height
            assert {sum(segment.cell_length for segment in line) for line in lines} == {width}, pressed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(PRESSED), max_size=25),
    st.integers(10, 150),
    st.integers(4, 60),
    st.booleans(),
)
def test_whatever_is_pressed_the_screen_is_whole(
    pressed: list[str], width: int, height: int, odd: bool
) -> None:
    """And nothing is ordered but after a question, by `y`."""
    state = opened()
    if odd:
        document = recorded()
        document["virtuals"], document["reals"] = [], document["reals"][1:]
        state.snapshot = snapshot(document)
    asked = False
    for key in pressed:
        deeds = press(state, key)
        if any(isinstance(deed, Order) for deed in deeds):
            assert asked
            assert key == "y"
        asked = isinstance(state.prompt, Confirming)
        lines = frame(state, width, height)
        assert len(lines) == height
        assert {sum(segment.cell_length for segment in line) for line in lines} == {width}


def test_before_the_first_snapshot() -> None:
    state = State()
    deeds = keys(state, "1", "2", "j", "e", "d", "s", "/", "enter", "esc")
    assert not [deed for deed in deeds if isinstance(deed, Order)]
    lines = ["".join(segment.text for segment in line) for line in frame(state, 80, 24)]
    assert "asking the gateway" in lines[1]
