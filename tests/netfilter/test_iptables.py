"""What iptables says, in one line for an operator. The texts are what the programs print (1.8.9)."""

from pathlib import Path

import pytest

from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import BusyError, Iptables, explain

TEXT = "*mangle\n:NFQLB-A - [0:0]\n-A NFQLB-A -j RETURN\n-A NFQLB-A -m rateest --rateest x -j DROP\nCOMMIT\n"


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        (
            "iptables-restore v1.8.9 (nf_tables): \n"
            "line 4: RULE_APPEND failed (Invalid argument): rule in chain NFQLB-A\n",
            [
                'rule "-A NFQLB-A -m rateest --rateest x -j DROP"',
                "the kernel refused it: Invalid argument",
                "module",
            ],
        ),
        (
            "iptables-restore v1.8.9 (nf_tables): Couldn't load match `rateest':No such file or directory\n\n"
            "Error occurred at line: 4\n"
            "Try `iptables-restore -h' or 'iptables-restore --help' for more information.\n",
            ['rule "-A NFQLB-A -m rateest --rateest x -j DROP"', "Couldn't load match `rateest'"],
        ),
        ("iptables-restore: line 5 failed\n", ["table mangle", "the kernel refused it"]),
        (
            "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n"
            "iptables-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).\n",
            ['rule "-A NFQLB-A -j RETURN"', "Bad rule"],
        ),
        (
            "Can't lock /run/xtables.lock: Resource temporarily unavailable\n"
            "Another app is currently holding the xtables lock. Stopped waiting after 1s.\n",
            ["lock", "try again"],
        ),
        (
            "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied "
            "(you must be root)\n",
            ["not permitted", "CAP_NET_ADMIN"],
        ),
        ("Fatal: can't open lock file /run/xtables.lock: Permission denied\n", ["not permitted"]),
        (
            "iptables-restore/1.8.9 (nf_tables) Failed to initialize nft: Protocol not supported\n",
            ["this kernel lacks nf_tables", "modprobe nf_tables"],
        ),
        (
            "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'raw'\n\n"
            "Error occurred at line: 1\n",
            ["unable to initialize table 'raw'"],
        ),
        ("", ["failed without saying why"]),
    ],
)
def test_a_refusal_is_one_line_that_names_the_rule_and_the_reason(stderr: str, words: list[str]) -> None:
    """F38: also what a kernel without a module comes to."""
    said = explain("iptables-restore", stderr, TEXT)
    assert said.startswith("iptables-restore: ")
    assert "\n" not in said
    for word in words:
        assert word in said


def test_a_line_number_beyond_the_text_names_no_rule() -> None:
    assert "rule" not in explain("iptables-save", "line 99: odd", "")


def test_a_table_is_not_said_to_be_missing_while_somebody_else_has_the_lock(tmp_path: Path) -> None:
    """F18: what is found out is kept for as long as the gateway runs."""
    program = tmp_path / "iptables"
    program.write_text("#!/bin/sh\necho 'Another app is currently holding the xtables lock.' >&2\nexit 4\n")
    program.chmod(0o755)
    with pytest.raises(BusyError, match="another program held the iptables lock"):
        Iptables(str(program)).has("security")
    program.write_text("#!/bin/sh\necho \"can't initialize: Table does not exist\" >&2\nexit 3\n")
    assert not Iptables(str(program)).has("security")


def test_a_program_that_is_not_there_is_named_with_what_to_do() -> None:
    missing = Iptables("no-such-iptables")
    assert not missing.installed
    with pytest.raises(
        KernelError, match="no-such-iptables-save is not installed; on Debian: apt-get install"
    ):
        missing.save()
