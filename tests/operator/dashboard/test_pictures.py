"""The README's pictures: whole screens as SVG, which fetch nothing from anywhere."""

import re
import xml.etree.ElementTree as ET

from nfqlb.operator.dashboard.model import snapshot
from nfqlb.operator.dashboard.pictures import picture
from nfqlb.operator.dashboard.state import Page, State
from nfqlb.operator.dashboard.views.frame import frame
from tests.operator.dashboard.gateway import recorded


def test_a_picture_has_what_the_screen_says() -> None:
    state = State(page=Page("reals"))
    state.snapshot = snapshot(recorded())
    svg = picture(frame(state, 100, 20), (100, 20))
    texts = [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert {"nfqlb", "web1", "10.0.0.11", "50%"} <= set(texts)
    assert not any(text != text.strip("\xa0 ") for text in texts if text.strip("\xa0 \n"))


def test_a_picture_fetches_nothing() -> None:
    state = State()
    state.snapshot = snapshot(recorded())
    svg = picture(frame(state, 80, 24), (80, 24))
    assert "@font-face" not in svg
    assert set(re.findall(r"https?://[^\"'\s)]+", svg)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}


def test_a_fact_stands_apart_from_its_name() -> None:
    document = recorded()
    document["reload"] = {"ok": True, "at": 1_800_000_000.0, "error": None}
    state = State()
    state.snapshot = snapshot(document)
    lines = ["".join(segment.text for segment in line) for line in frame(state, 120, 60)]
    assert any(re.match(r" config +reloaded at ", line) for line in lines), lines
