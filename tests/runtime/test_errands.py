"""The errands of one owner: work done by children, of which some cannot be born."""

import errno
import os
import selectors
import time
from pathlib import Path

import pytest

from nfqlb.netfilter.errors import KernelError
from nfqlb.runtime.errand import Errands
from nfqlb.runtime.protocol import JSON


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_without_room_for_a_child_the_owner_is_told_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F30: the gateway goes on, whoever's errand it was."""

    def full() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    with selectors.DefaultSelector() as selector:
        errands, ends, before = Errands(selector, 5.0), list[JSON | KernelError](), descriptors()
        errands.begin(lambda: None, ends.append)
        assert [str(end) for end in ends] == ["no process can be started: Resource temporarily unavailable"]
        assert (errands.pids, descriptors()) == (set(), before)


def test_the_end_of_one_is_not_the_end_of_another() -> None:
    def slow() -> JSON:
        time.sleep(0.5)
        return "slow"

    with selectors.DefaultSelector() as selector:
        errands, ends = Errands(selector, 5.0), list[JSON | KernelError]()
        errands.begin(slow, ends.append)
        errands.begin(lambda: "quick", ends.append)
        while not ends:
            for key, mask in selector.select(5):
                key.data(mask)
        assert ends == ["quick"]
        (child,) = errands.pids
        errands.close()
        assert not Path(f"/proc/{child}").exists(), "it was waited for"
        assert ends == ["quick"]
