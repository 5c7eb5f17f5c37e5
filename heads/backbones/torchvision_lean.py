"""torchvision's names, imported without torch's compiler, which takes two seconds of every process that knows a backbone.

One of torchvision's operators (RoIAlign, which no backbone has) asks the compiler a question when it is called, and imports it
when it is defined. Here that import is put off to the call. It is a private name of torch, so a test checks that it is still
asked for; where torchvision asks for another, the compiler is imported as it always was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER, ASKED_OF, QUESTION = "torch._dynamo", "torch._dynamo.utils", "is_compile_supported"


@contextmanager
def compiler_put_off() -> Iterator[None]:
    """Let modules that are imported in this block have the compiler's one function, which imports it when it is called."""
    stands_in = {COMPILER: ModuleType(COMPILER), ASKED_OF: ModuleType(ASKED_OF)}

    def give_back() -> None:
        for name, module in stands_in.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def ask(name: str) -> Any:
        if name.startswith("__"):
            # What inspect asks of every module.
            raise AttributeError(name)
        give_back()
        return getattr(import_module(ASKED_OF), name)

    setattr(stands_in[ASKED_OF], QUESTION, lambda *args, **kwargs: ask(QUESTION)(*args, **kwargs))
    setattr(stands_in[ASKED_OF], "__getattr__", ask)  # noqa: B010 - a module's own hook, which mypy takes for a method
    if COMPILER not in sys.modules:
        sys.modules.update(stands_in)
    try:
        yield
    finally:
        give_back()


with compiler_put_off():
    from torchvision import models
    from torchvision.models import WeightsEnum
    from torchvision.ops.misc import Permute

__all__ = ["Permute", "WeightsEnum", "compiler_put_off", "models"]
