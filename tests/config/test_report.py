"""The report as the person who made the mistakes reads it."""

from collections.abc import Callable

import pytest

from nfqlb.config.load import ConfigError, Finding, parse
from nfqlb.config.report import did_you_mean, kind, show, spell

MISTAKES = """\
# gateway of the shop
[gateway]
outside = "eth0"
inside = ["eth1", "eth0"]
max_conections = 500

[timeouts]
idle = "ten minutes"

[[real]]
name = "web1"
address = "10.0.0.1/24"

[[real]]
name = "web2"
address = "10.0.0.2"
\tweight = "2"

[[virtual]]
name = "shop"
address = "192.0.2.10"
port = 80
scheduler = "fastest-responce"
servers = [
    "web1:8080",   # the new one
    "wbe2",
]
"""

REPORT = """\
gw.toml:4: error: gateway.inside: "eth0" is the outside interface already
    4 | inside = ["eth1", "eth0"]
      |                   ^^^^^^
      hint: clients and real servers need an interface each
gw.toml:5: error: gateway.max_conections: unknown key in [gateway]
    5 | max_conections = 500
      | ^^^^^^^^^^^^^^
      hint: did you mean "max_connections"?
gw.toml:8: error: timeouts.idle: "ten minutes" is not a duration \
(allowed: seconds, or a text such as "90s", "5m" or "1h")
    8 | idle = "ten minutes"
      |        ^^^^^^^^^^^^^
      hint: one number and one unit: ms, s, m, h, d
gw.toml:12: error: real[web1].address: "10.0.0.1/24" is not an IP address
   12 | address = "10.0.0.1/24"
      |           ^^^^^^^^^^^^^
      hint: without the prefix length: "10.0.0.1"
gw.toml:17: error: real[web2].weight: "2" is a text (allowed: 0, or a number from 0.001 to 1000000)
   17 |  weight = "2"
      |           ^^^
      hint: without the quotes: 2
gw.toml:23: error: virtual[shop].scheduler: "fastest-responce" is not known \
(allowed: "round-robin", "weighted-round-robin", "least-connections", "weighted-least-connections", \
"fastest-response", "source-hash", "maglev" or "power-of-two")
   23 | scheduler = "fastest-responce"
      |             ^^^^^^^^^^^^^^^^^^
      hint: did you mean "fastest-response"?
gw.toml:26: error: virtual[shop].servers: no [[real]] is named "wbe2"
   26 |     "wbe2",
      |     ^^^^^^
      hint: did you mean "web2"?
7 errors in gw.toml"""


def test_all_mistakes_of_a_file_in_one_report() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(MISTAKES, "gw.toml")
    assert str(caught.value) == REPORT
    assert caught.value.findings[1] == Finding(
        5, "gateway.max_conections", "unknown key in [gateway]", 'did you mean "max_connections"?', 1, 14
    )


def test_an_empty_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("", "gw.toml")
    assert str(caught.value) == (
        "gw.toml: error: gateway: the table [gateway] is missing\n"
        "      hint: it needs at least outside and inside\n"
        "gw.toml: error: real: there is no [[real]]\n"
        "      hint: it needs at least name and address\n"
        "gw.toml: error: virtual: there is no [[virtual]]\n"
        "      hint: it needs at least name, address and servers\n"
        "3 errors in gw.toml"
    )


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (
            "[gateway]\noutside = eth0\n",
            "gw.toml:2: error: not valid TOML: invalid value\n    2 | outside = eth0\n      |           ^\n"
            '      hint: a text stands in quotes: outside = "eth0"; true and false are lower case',
        ),
        (
            "[gateway]\r\noutside = 'eth0'\r\n\r\n[real]\r\nname = 'a'\r\n[real]\r\n",
            "gw.toml:6: error: not valid TOML: cannot declare [real] twice\n"
            "    6 | [real]\n      |      ^\n"
            "      hint: write [[real]] in double brackets for each real server",
        ),
        (
            "[[real]]\nname = 'a'\nname = 'b'",
            "gw.toml:3: error: not valid TOML: cannot overwrite a value\n    3 | name = 'b'\n"
            "      hint: the same key is set further up; "
            "is a [[real]] or [[virtual]] line missing in between?",
        ),
        (
            "[[real]]\naddress = 10.0.0.1\n",
            "gw.toml:2: error: not valid TOML: expected newline or end of document after a statement\n"
            "    2 | address = 10.0.0.1\n      |               ^\n"
            "      hint: one key = value on a line; addresses, names and 5m stand in quotes",
        ),
        ("a = " + "1" * 5000, "gw.toml: error: not valid TOML\n      hint: a number has thousands of digits"),
        ("a = " + "[" * 5000 + "]" * 5000, "gw.toml: error: lists or tables are nested too deeply"),
    ],
)
def test_breaches_of_the_syntax(text: str, report: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "gw.toml")
    assert str(caught.value) == report


def test_a_long_line_is_cut_around_the_caret() -> None:
    line = f"servers = [{', '.join(f'{chr(34)}server-{number}{chr(34)}' for number in range(100))}]"
    column = line.index("server-50") + 1
    error = ConfigError("x", [Finding(1, "", "m", column=column, width=9)], line)
    _, shown, caret = str(error).split("\n")
    assert len(shown) <= 110
    assert shown[caret.index("^") : caret.rindex("^") + 1] == "server-50"


def test_a_terminal_is_not_given_control_characters() -> None:
    error = ConfigError("a\x1b[2J\n", [Finding(1, "", "m", column=1)], "k = '\x1b[31m\x9b'")
    assert str(error) == "a?[2J?:1: error: m\n    1 | k = '?[31m?'\n      | ^"


def test_a_caret_never_stands_outside_the_line() -> None:
    for column, width in ((1, 99), (4, 1), (50, 3)):
        rows = str(ConfigError("x", [Finding(1, "", "m", column=column, width=width)], "abc")).split("\n")
        assert rows[1] == "    1 | abc"
        assert set(rows[2]) <= set(" |^")
        assert 0 < rows[2].count("^") <= 3
        assert len(rows[2]) <= len("      | abc") + 1


def test_findings_stand_in_the_order_of_the_file() -> None:
    found = [
        Finding(3, "c", "m"),
        Finding(1, "b", "m", column=9),
        Finding(1, "a", "m", column=2),
        Finding(0, "f", "m"),
    ]
    assert [finding.key for finding in ConfigError("x", found).findings] == ["f", "a", "b", "c"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true"),
        (7, "7"),
        (1 << 5000, "a number this large"),
        (0.5, "0.5"),
        ("a\nb", '"a?b"'),
        ([], "an empty list"),
        ("x" * 90, f'"{"x" * 60}..."'),
        ([1], "a list"),
        ({}, "a table"),
    ],
)
def test_values_are_shown_briefly(value: object, shown: str) -> None:
    assert show(value) == shown


def test_words_for_kinds_and_keys() -> None:
    values: list[object] = [True, 1, 1.5, "x", [], [{}], {}, object()]
    assert [kind(value) for value in values] == [
        "true or false",
        "a number",
        "a number",
        "a text",
        "a list",
        "a list of tables",
        "a table",
        "a date or time",
    ]
    assert spell(["real", "a b"]) == 'real."a b"'
    assert did_you_mean("Round-Robbin", ["round-robin", "maglev"]) == 'did you mean "round-robin"?'
    assert did_you_mean("xyz", ["round-robin"]) == ""


WRONG_SHAPES: list[tuple[Callable[[str], str], str, str]] = [
    (lambda text: text.replace("[gateway]", "[gatway]"), "gatway", "did you mean [gateway]?"),
    (
        lambda text: text.replace("[gateway]", "[[gateway]]"),
        "gateway",
        "write [gateway] in single brackets, once",
    ),
    (
        lambda text: text.replace("[[virtual]]", "[virtual]"),
        "virtual",
        "write [[virtual]] in double brackets",
    ),
    (lambda text: "port = 80\n" + text, "port", "it belongs below [[virtual]]"),
    (
        lambda text: "max_connections = 80\n" + text,
        "max_connections",
        "it belongs below [gateway] and [[real]]",
    ),
    (lambda text: "colour = 80\n" + text, "colour", "it belongs below the line with its [table]"),
    (
        lambda text: text + "[[backends]]\n",
        "backends",
        "known tables: [gateway], [timeouts], [strict], [[real]], [[virtual]]",
    ),
    (lambda text: text + "idle = 5\n", "virtual[shop].idle", "it is a key of [timeouts]"),
    (lambda text: text + "'a b' = 5\n", 'virtual[shop]."a b"', "known keys: name, address, servers"),
    (
        lambda text: text[: text.index("[[real]]")] + "[[real]]\n" + text[text.index("[[virtual]]") :],
        "real[#1].name",
        "",
    ),
    (
        lambda text: "real = 5\n" + text[: text.index("[[real]]")] + text[text.index("[[virtual]]") :],
        "real",
        "start each one with a line [[real]]",
    ),
]


@pytest.mark.parametrize(("change", "key", "hint"), WRONG_SHAPES, ids=[key for _, key, _ in WRONG_SHAPES])
def test_wrong_shapes(
    change: Callable[[str], str],
    key: str,
    hint: str,
    good_with: Callable[..., str],
    findings: Callable[[str], tuple[Finding, ...]],
) -> None:
    matching = [finding for finding in findings(change(good_with())) if finding.key == key]
    assert len(matching) == 1
    assert hint in matching[0].hint
    assert matching[0].line > 0


def test_a_misspelt_name_is_not_reported_as_a_missing_one_too(
    good_with: Callable[..., str], findings: Callable[[str], tuple[Finding, ...]]
) -> None:
    for old, new, hint in (
        ("[gateway]", "[gatway]", "did you mean [gateway]?"),
        ("[[virtual]]", "[[virtuals]]", "did you mean [[virtual]]?"),
        ("servers =", "server =", 'did you mean "servers"?'),
        ('address = "10.0.0.1"', 'adress = "10.0.0.1"', 'did you mean "address"?'),
    ):
        (finding,) = findings(good_with().replace(old, new))
        assert finding.hint == hint


def test_lists_of_something_else(findings: Callable[[str], tuple[Finding, ...]]) -> None:
    found = [
        one
        for one in findings("virtual = [{}]\nreal = [5, {name = 'a', address = '10.0.0.1'}]")
        if one.line == 2
    ]
    assert [(one.key, one.message, one.column) for one in found] == [
        ("real[#1]", "5 is a number (allowed: a table)", 9)
    ]
