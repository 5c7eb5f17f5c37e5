"""A test file run as a program by two processes that train together: what each found, which must be the same."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

ROOT = Path(__file__).parents[2]


def run_two_ranks(program: str, pictures: Path, shared: Path) -> dict[str, Any]:
    """What both processes found that ran the test file `program`, whose last lines call `be_a_rank`; `shared` is a folder."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen([sys.executable, program, str(rank), str(pictures), str(shared)], env=environment, cwd=shared)
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (json.loads((shared / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    found: dict[str, Any] = first
    return found


def be_a_rank(find: Callable[[Path], Mapping[str, Any]]) -> None:
    """One of the two processes: leaves as JSON what `find` makes of the pictures."""
    rank, pictures, shared = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{shared / 'meeting'}", rank=rank, world_size=2)
    (shared / f"{rank}.json").write_text(json.dumps(find(pictures)))
    dist.destroy_process_group()


def digest_of(model: nn.Module) -> str:
    """Of all that a model holds."""
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in model.state_dict().values())).hexdigest()
