"""The places of keys, against what `tomllib` reads from the same text."""

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.config.report import KeyPath
from nfqlb.config.scanner import KeyPlaces

STEADY = settings(derandomize=True, deadline=None)
TEXT = """\
# first
top.dotted."quoted key" = 1   # comment with = and [x]

[gateway]
outside = 'eth#0'
  inside\t=\t[ "a,b", # not ] the end
    "c]",
    [1, {x = 2}],
  ]
note = \"\"\"
[not.a.header]
key = "no key" \\\"""\"\"\"
raw = '''
it's [x]
'''''
when = 1979-05-27 07:32:00
inline = { a.b = "}", "c" = [1] }

[[real]]
name = "web1"
[[real]] # second
"name" = "web2"
[real.extra]
deep = true
[[real.more]]
x = 1
[[real.more]]
x = 2
"""


def line_of(places: KeyPlaces, *path: str | int) -> int:
    assert path in places
    place = places.of_value(path)
    assert place is not None
    return place.line


def paths_in(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every key path of a parsed document, members of lists included."""
    found = {path} if path else set()
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, member in value.items() if isinstance(value, dict) else ():
        found |= paths_in(member, (*path, key))
    return found


def test_every_key_has_its_line() -> None:
    places = KeyPlaces(TEXT)
    lines = {
        ("top", "dotted", "quoted key"): 2,
        ("gateway",): 4,
        ("gateway", "outside"): 5,
        ("gateway", "inside"): 6,
        ("gateway", "inside", 0): 6,
        ("gateway", "inside", 1): 7,
        ("gateway", "inside", 2): 8,
        ("gateway", "inside", 2, 1, "x"): 8,
        ("gateway", "note"): 10,
        ("gateway", "raw"): 13,
        ("gateway", "when"): 16,
        ("gateway", "inline", "a", "b"): 17,
        ("real", 0): 19,
        ("real", 0, "name"): 20,
        ("real", 1): 21,
        ("real", 1, "name"): 22,
        ("real", 1, "extra", "deep"): 24,
        ("real", 1, "more", 0, "x"): 26,
        ("real", 1, "more", 1, "x"): 28,
    }
    assert {path: line_of(places, *path) for path in lines} == lines
    assert paths_in(tomllib.loads(TEXT)) == {path for path in paths_in(tomllib.loads(TEXT)) if path in places}


def test_columns_and_widths_underline_key_and_value() -> None:
    places = KeyPlaces('a = 1\n  "b" = [ "xy", 3 ]\n')
    spots = {
        name: (place.column, place.width)
        for name, place in {
            "key b": places.of_key(("b",)),
            "value b": places.of_value(("b",)),
            "first of b": places.of_value(("b", 0)),
            "second of b": places.of_value(("b", 1)),
        }.items()
        if place
    }
    assert spots == {"key b": (3, 3), "value b": (9, 11), "first of b": (11, 4), "second of b": (17, 1)}


def test_what_has_no_place_gets_the_place_around_it() -> None:
    places = KeyPlaces("[real]\nx = 1\n")
    assert places.of_value(("real", "missing")) == places.of_value(("real",))
    assert places.of_key(("real", "x", 7)) == places.of_key(("real", "x"))
    assert places.of_value(("nowhere",)) is None
    assert places.of_key(("nowhere",)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# x",
        "a=1",
        "a=1 # x",
        "a=''",
        'a=""""""',
        "a=''''''",
        'a="""x"""""',
        "a='''x'''''",
        'a="\\\\"',
        'a="\\""',
        'a="""\\""""',
        "a=[]",
        "a={}",
        "a=[[],[{}]]",
        "a=[1,]",
        "a=[\n#]\n1\n,\n]",
        "a = { b = 1, c.d = 2 }",
        "a.b = 1\na.c = 2",
        "[a.b]\n[a]",
        "[ a . 'b.c' ]\nx=1",
        "[[ a ]]\nx=1",
        "[\ta\t]\nx=1",
        "a . b = 1",
        "a =1 ",
        '["\\u00e4"]',
        "[[a]]\n[[a.b]]\n[[a]]\n[a.c]",
        "a=07:32:00",
        "a=1979-05-27 07:32:00Z",
        '"" = 1',
        "1 = 2",
        "a = -inf",
        "[[a]]\n[a.b.c]\nd=1",
    ],
)
def test_corners_of_the_grammar(text: str) -> None:
    expected = paths_in(tomllib.loads(text))
    places = KeyPlaces(text)
    assert len(places) == len(expected)
    assert all(path in places for path in expected)


WORDS = st.sampled_from(
    [
        "a",
        "b",
        '"q k"',
        "'l.k'",
        ".",
        " = ",
        "1",
        '"s#]"',
        "'r'",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        "\n",
        "\n",
        "# c",
        " ",
        '"""m\n"""',
        "'''\nm'''",
        "1979-05-27 07:32:00",
        "a = ",
        "b = 1\n",
        "[a]\n",
        "[[b]]\n",
        "[b.a]\n",
        '"\\u0061"',
    ],
)


@settings(STEADY)
@given(st.lists(WORDS, max_size=14).map("".join))
def test_whatever_is_valid_has_all_its_places(text: str) -> None:
    try:
        expected = paths_in(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return
    places = KeyPlaces(text)
    assert len(places) == len(expected)
    assert all(path in places for path in expected)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=4)
SCALARS = st.one_of(st.booleans(), st.integers(), NAMES)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)


def spelled(value: Any) -> str:
    """A value in TOML, its tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[ {' ,'.join(spelled(item) for item in value)} ]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{spelled(key)} = {spelled(item)}" for key, item in value.items()) + "}"
    return str(value)


@settings(STEADY)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_every_document_written_out_has_all_its_places(document: dict[str, Any]) -> None:
    text = "\n".join(f"{spelled(key)} = {spelled(value)}" for key, value in document.items())
    assert tomllib.loads(text) == document
    places = KeyPlaces(text)
    assert len(places) == len(paths_in(document))
    for number, key in enumerate(document, start=1):
        assert line_of(places, key) == number
