"""Torch's random state: how it is seeded, and one apart for each of several trainings in a process."""

from __future__ import annotations

from types import TracebackType

import torch


def seed_streams(seed: int, device: torch.device) -> None:
    """Seeds torch's random state on the CPU and, if `device` is a GPU, on all GPUs."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


class RNGState:
    """A random state of its own on the CPU and on `device`: it serves draws inside `with` blocks, and none outside change it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._own, self._others = self._state(), self._state()

    def __enter__(self) -> None:
        self._others = self._state()
        self._set(self._own)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._own = self._state()
        self._set(self._others)

    def _state(self) -> list[torch.Tensor]:
        on_device = [torch.cuda.get_rng_state(self._device)] if self._device else []
        return [torch.get_rng_state(), *on_device]

    def _set(self, state: list[torch.Tensor]) -> None:
        torch.set_rng_state(state[0])
        if self._device:
            torch.cuda.set_rng_state(state[1], self._device)
