"""What a trunk gives is cut into shards, each of which the feature store gets whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Self

import torch
from torch import Tensor

from heads.features import Key, TrunkFeatures
from heads.features.tokens import flatten_tokens
from heads.trunks.forward import Forward

# The most that a kill can lose: a shard is written when it has this many bytes, or its first sample is this old. Writing takes
# twice as much memory. On a GPU it goes on beside the forward passes, but for the last shard, which is the smaller.
SHARD_BYTES = {"cpu": 32 * 2**20, "cuda": 16 * 2**20}
SHARD_SECONDS = 20.0

# Gives the features of a shard by tap name, on the CPU.
ShardFeatures = Callable[[], dict[str, Tensor]]


class ShardWriter:
    """Writes shards: on a GPU in a thread, one while the next is filled; else at once, since a CPU has no time to spare."""

    def __init__(self, trunk_features: TrunkFeatures, device: torch.device, on_stored: Callable[[int], None] | None) -> None:
        self._features, self._on_stored = trunk_features, on_stored
        self._thread = ThreadPoolExecutor(1, "shards") if device.type == "cuda" else None
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread:
            self._thread.shutdown()
        if kind is None:
            self._settle()

    def write(self, keys: Sequence[Key], shard: ShardFeatures, token_keys: Mapping[str, Sequence[Key]]) -> None:
        """Writes the shard that the function gives, of a sample a key, and a shard of its own for each tap in `token_keys`, of a
        token a key; raises what went wrong with the one before it."""
        if self._thread is None:
            self._write(keys, shard, token_keys)
            self._tell(len(keys))
            return
        self._settle()
        self._pending = len(keys), self._thread.submit(self._write, keys, shard, token_keys)

    def _write(self, keys: Sequence[Key], shard: ShardFeatures, token_keys: Mapping[str, Sequence[Key]]) -> None:
        features = shard()
        for name, of_tokens in token_keys.items():
            self._features.write(of_tokens, {name: features.pop(name)})
        if features:
            self._features.write(keys, features)

    def _settle(self) -> None:
        if self._pending:
            (number, written), self._pending = self._pending, None
            written.result()
            self._tell(number)

    def _tell(self, number: int) -> None:
        if self._on_stored:
            self._on_stored(number)


def cut_in_shards(
    forward: Forward, batches: Iterator[tuple[Tensor, int]], num_samples: int, num_rows: Mapping[str, Sequence[int]]
) -> Iterator[tuple[slice, ShardFeatures]]:
    """Shards: the slice of the samples that each holds, and a function that gives their features by tap name, on the CPU.

    Features are a row a sample, or, of a tap in `num_rows`, which has a number for each sample, so many rows a sample.
    """
    parts: list[dict[str, Tensor]] = []
    first = num_bytes = end = 0
    start = monotonic()
    for batch, length in batches:
        limit = SHARD_BYTES.get(batch.device.type, SHARD_BYTES["cpu"])
        features = forward(batch)
        if num_rows and batch.is_cuda:
            torch.cuda.current_stream(batch.device).synchronize()  # their rows are copied now
        part = {name: tensor[:length] for name, tensor in features.items()}
        parts.append(part | {name: flatten_tokens(part[name], rows[end : end + length]) for name, rows in num_rows.items()})
        num_bytes += sum(tensor.nbytes for tensor in parts[-1].values())
        end += length
        if num_bytes >= limit or monotonic() - start >= SHARD_SECONDS or end == num_samples:
            ready = torch.cuda.current_stream(batch.device).record_event() if batch.is_cuda else None
            yield slice(first, end), partial(_joined, parts, ready)
            parts, first, num_bytes, start = [], end, 0, monotonic()
    forward.close()


def _joined(parts: list[dict[str, Tensor]], ready: torch.cuda.Event | None) -> dict[str, Tensor]:
    """The parts as one, once they are there; they are freed."""
    if ready:
        ready.synchronize()
    shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    parts.clear()
    return shard
