"""The end of the rules: while others have iptables' lock, and where iptables is gone."""

from collections.abc import Callable

import pytest

from nfqlb.netfilter import rules
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.iptables import BusyError
from nfqlb.runtime.departure import withdraw


def answering(*answers: list[str] | KernelError) -> Callable[[], list[str]]:
    """What `rules.withdraw` says, one after the other; the last one for ever."""
    left = list(answers)

    def answer() -> list[str]:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, KernelError):
            raise found
        return found

    return answer


def test_f18_what_others_do_with_iptables_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = BusyError("another program held the iptables lock for 5 s; try again")
    monkeypatch.setattr(rules, "withdraw", answering(held, held, held, held, held, held, ["iptables raw"]))
    times = iter(range(0, 1000, 5))
    assert withdraw(lambda: float(next(times))) == ["iptables raw"]


@pytest.mark.parametrize("error", [BusyError("another program held it"), KernelError("another one")])
def test_f18_that_the_rules_stay_is_said_with_what_takes_them_out(
    monkeypatch: pytest.MonkeyPatch, error: KernelError
) -> None:
    monkeypatch.setattr(rules, "withdraw", answering(error))
    times = iter(range(0, 1000, 5))
    with pytest.raises(KernelError, match=r"the rules stay: another .*; `nfqlb rules remove` takes them out"):
        withdraw(lambda: float(next(times)))
    assert next(times) <= 60


def test_f18_without_iptables_the_rules_stay_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "withdraw", answering([]))
    monkeypatch.setattr("nfqlb.netfilter.iptables.installed", lambda _name: False)
    with pytest.raises(KernelError, match="the rules stay: iptables is not installed any more"):
        withdraw()
