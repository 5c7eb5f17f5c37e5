"""A kill between two steps, from inside the process: an exception that nothing of ours catches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def killed_after(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int) -> Iterator[None]:
    """End the block right after this call of a method, counted from 1; fails if it was not reached."""
    real, calls = getattr(owner, method), list[None]()

    def killed(self: object, *args: Any, **options: Any) -> Any:
        done = real(self, *args, **options)
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, killed)
        with pytest.raises(KeyboardInterrupt):
            yield
