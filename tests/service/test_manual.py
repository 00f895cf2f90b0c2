"""The manual pages: every command, option and key has its place in them, and nothing that does not exist."""

import argparse
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.resources import files

import pytest

from nfqlb.config.draft import TABLES
from nfqlb.operator.cli import parser
from nfqlb.operator.commands import ALL, HIDDEN
from nfqlb.operator.words import WORDS

PAGES = ("nfqlb.8", "nfqlb.toml.5")
#: What mandoc says of the machine that it runs on, not of a page.
ELSEWHERE = ("referenced manual not found", "outdated mandoc.db")
OPTION = re.compile(r"\bFl (-?[a-z][a-z-]*)")


def page(name: str) -> str:
    """The source of a page."""
    return (files("nfqlb.service") / name).read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """The subsections of a page by their first word."""
    parts = re.split(r"^\.S[sh] (.*)$", text, flags=re.MULTILINE)
    return {title.split(":")[0]: body for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def leaves(made: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it."""
    yield made
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from leaves(below)


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""
    (action,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)


def options(command: str) -> list[set[str]]:
    """Every option of a command, as the names that it has."""
    found = [each for leaf in leaves(commands()[command]) for each in leaf._actions if each.option_strings]
    return [set(each.option_strings) for each in found if "-h" not in each.option_strings]


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_nothing_to_say(name: str) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint"], input=page(name), capture_output=True, text=True, check=False
    )
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not any(words in line for words in ELSEWHERE)
    ]
    assert said == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_rendered(name: str) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "ascii"], input=page(name), capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) > 100


def test_every_command_has_its_section_and_no_other_has_one() -> None:
    text = page("nfqlb.8")
    titles = re.findall(r"^\.Ss (.*)$", text, flags=re.MULTILINE)
    assert titles == list(ALL)
    assert not set(HIDDEN) & set(re.findall(r"\w+", text))


@pytest.mark.parametrize("command", ALL)
def test_every_option_is_in_its_section_and_no_other(command: str) -> None:
    said = {f"-{each}" for each in OPTION.findall(sections(page("nfqlb.8"))[command])}
    known = options(command)
    assert [names for names in known if not names & said] == []
    assert said - set().union(*known) == set()


@pytest.mark.parametrize("command", [command for command, words in WORDS.items() if words])
def test_every_second_word_is_in_its_section_and_no_other(command: str) -> None:
    body = sections(page("nfqlb.8"))[command]
    shown = re.findall(rf"^\.D1 Nm Cm {command} ([a-z-]+)", body, flags=re.MULTILINE)
    assert list(dict.fromkeys(shown)) == list(WORDS[command])


# --- nfqlb.toml


def keys(table: str) -> dict[str, str]:
    """The keys that the page has for a table, with what it says of their defaults."""
    body = next(body for title, body in sections(page("nfqlb.toml.5")).items() if title.strip("[]") == table)
    found = re.findall(r"^\.It Ic (\w+) No (.*)$", body, flags=re.MULTILINE)
    return dict(found)


def test_every_table_has_its_section() -> None:
    titles = [title for title in sections(page("nfqlb.toml.5")) if title.startswith("[")]
    assert {title.strip("[]") for title in titles} == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_every_key_has_its_place_and_its_default(table: str) -> None:
    model, shown = TABLES[table], keys(table)
    assert shown.keys() == model.model_fields.keys()
    for key, said in shown.items():
        if key in model.required:
            assert said == "(required)"
        elif said.startswith("="):
            value = said.removeprefix("= ").replace("Qq \\&", '""')
            value = re.sub(r"^Qq (.*)$", r'"\1"', value)
            given = model.model_validate(tomllib.loads(f"{key} = {value}"))
            assert getattr(given, key) == model.model_fields[key].default, key
        else:
            assert said.startswith("(")
            assert model.model_fields[key].default is None, key
