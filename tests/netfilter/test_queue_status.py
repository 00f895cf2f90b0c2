"""The kernel's account of its queues, as seq_show in nfnetlink_queue.c prints it."""

from pathlib import Path

import pytest

from nfqlb.netfilter.queue_status import QueueStatus, parse_queues, read_queues

TEXT = (
    "    0   4711     5 2 65531     1     2      345  1\n"
    "    1 2890344512     0 2 65531     0     0 4294967295  1\n"
)


def test_every_column_has_its_name() -> None:
    assert parse_queues(TEXT) == [
        QueueStatus(number=0, port=4711, depth=5, dropped_full=1, dropped_socket=2, last_id=345),
        QueueStatus(number=1, port=2890344512, depth=0, dropped_full=0, dropped_socket=0, last_id=4294967295),
    ]


def test_an_older_kernels_negative_port_is_a_number() -> None:
    (queue,) = parse_queues("    7 -4118     0 2  4016     0     0        0  1\n")
    assert (queue.number, queue.port) == (7, -4118)


@pytest.mark.parametrize(
    "text", ["", "\n", "header of another kernel\n", "1 2 3\n", "0 x 5 2 4016 1 2 345 1\n"]
)
def test_other_lines_are_left_out(text: str) -> None:
    assert parse_queues(text + TEXT) == parse_queues(TEXT)


def test_a_file_that_is_missing_means_no_queues(tmp_path: Path) -> None:
    assert read_queues(tmp_path / "missing") == []
    (tmp_path / "queues").write_text(TEXT, encoding="ascii")
    assert len(read_queues(tmp_path / "queues")) == 2
