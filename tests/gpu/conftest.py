"""What holds on a GPU: `python3 -m pytest tests/gpu` on any machine with torch, torchvision and a CUDA GPU; skipped elsewhere.

On a GPU the order of a sum depends on a batch's shape and on which thread is first, and convolutions in float32 use TF32 (10 bits
of mantissa), so that only what is frozen is held to the bit. Each test states the tolerance that holds instead.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU: torch.cuda.is_available() is false here")
