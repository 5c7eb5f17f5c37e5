"""Work beside the stages of a retraining: it is waited for, its errors are raised once asked, and an interrupt stops it."""

from __future__ import annotations

import threading

import pytest

from flows.stages.background.beside import Beside


def test_what_it_raises_is_raised_where_it_is_joined_alone() -> None:
    def fail(_: threading.Event) -> None:
        raise OSError("no room")

    beside = Beside(fail)
    with pytest.raises(OSError, match="no room"):
        beside.join()
    beside.leave(None, None, None)


@pytest.mark.parametrize("kind", [None, ValueError, KeyboardInterrupt])
def test_its_end_is_waited_for_and_an_interrupt_asks_for_it(kind: type[BaseException] | None) -> None:
    begun, ended = threading.Event(), list[bool]()

    def work(stop: threading.Event) -> None:
        begun.set()
        ended.append(stop.wait(0.3))

    beside = Beside(work)
    assert begun.wait(5)
    beside.leave(kind, None, None)
    assert ended == [kind is KeyboardInterrupt]
