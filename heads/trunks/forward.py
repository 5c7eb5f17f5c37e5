"""The forward pass of frozen stages over batches of one shape: on a GPU captured once as a CUDA graph, then replayed.

A replay is one call, where the pass itself is hundreds, each of which takes a GPU's host longer than the GPU needs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from heads.model.precision import autocast
from heads.phases import Tap
from heads.spec import Precision

# A capture takes about as long as so many batches save.
MIN_BATCHES = 12
# Before a capture, so that libraries have chosen their kernels and their memory.
NUM_WARM_UPS = 2

Features = dict[str, Tensor]


class Forward:
    """Gives the features at the taps of batch after batch, by tap name, on the CPU: of a GPU's, only once its stream is there.

    On a GPU the pass is captured if there are at least `MIN_BATCHES` batches: at once with samples as an `example`, else at the
    first batch. Batches of another shape, and stages that cannot be captured, since what they do depends on values, run as they
    are. Where a batch finds no room on the GPU, it and all later ones run in parts half as large, and half again.
    """

    def __init__(
        self,
        stages: nn.Sequential,
        taps: Sequence[Tap],
        precision: Precision,
        num_batches: int,
        example: Tensor | None = None,
    ) -> None:
        self._run = partial(run_stages, stages, taps, precision)
        self._captures = num_batches >= MIN_BATCHES
        self._graph: _Graph | None = None
        self._num_parts = 1
        if example is not None:
            self._prepare(example)

    def _prepare(self, samples: Tensor) -> None:
        if self._captures and samples.is_cuda:
            self._captures = False
            with torch.inference_mode():
                self._graph = _capture(self._run, samples)

    def __call__(self, samples: Tensor) -> Features:
        self._prepare(samples)
        with torch.inference_mode():
            run = self._graph.replay if self._graph and self._graph.takes(samples) else self._run_in_parts
            # On the stream of the passes: the next replay overwrites these only once they are copied.
            return {name: tensor.to("cpu", non_blocking=True) for name, tensor in run(samples).items()}

    def _run_in_parts(self, samples: Tensor) -> Features:
        while (features := self._try_parts(samples)) is None:
            self._num_parts *= 2
            if samples.is_cuda:
                torch.cuda.empty_cache()
        return features

    def _try_parts(self, samples: Tensor) -> Features | None:
        """The features, None if a part finds no room. Raises OutOfMemoryError if that is a single sample."""
        size = -(-len(samples) // self._num_parts)
        try:
            parts = [self._run(part) for part in torch.split(samples, size)]
            return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            # Returns before the next try, since what the error holds would take the room.
            return None

    def close(self) -> None:
        """Frees the memory of the graph, once the device has come to the end of it."""
        if self._graph:
            torch.cuda.synchronize()
            self._graph = None
            torch.cuda.empty_cache()


def run_stages(stages: nn.Sequential, taps: Sequence[Tap], precision: Precision, samples: Tensor) -> Features:
    """The features at the taps by tap name, on the device of the samples. Stages after the last tap are not run."""
    features, taken = samples, Features()
    # No weights are kept cast: frozen ones never are, and a graph may not read what was cast outside of it.
    with torch.inference_mode(), autocast(samples.device, precision, keeps_casts=False):
        for number in range(max(tap.stage for tap in taps) + 1):
            features = stages[number](features)
            taken |= {tap.name: take(tap, features).contiguous() for tap in taps if tap.stage == number}
    return taken


def take(tap: Tap, features: Tensor) -> Tensor:
    """A stage's features (N, ...) in the form of the tap: whole, pooled, or a text's first token."""
    if tap.form == "map":
        return features
    if tap.form == "class":
        return features[:, 1:2]
    return features[:, :1] if features.ndim == 3 else features.mean(dim=(2, 3), keepdim=True)


def _capture(run: Callable[[Tensor], Features], samples: Tensor) -> _Graph | None:
    """The pass as a graph; None where it cannot be captured."""
    try:
        return _Graph(run, samples)
    except RuntimeError:
        torch.cuda.synchronize(samples.device)
        _end_capturing(samples.device)
        return None


def _end_capturing(device: torch.device) -> None:
    """After a capture that failed: has the device's random generator draw again. Raises RuntimeError if it cannot.

    Such a capture ends before the generator is told so, and dropout would fail from then on. One that succeeds tells it.
    """
    with suppress(RuntimeError):
        torch.rand(1, device=device)
        return
    graph, one = torch.cuda.CUDAGraph(), torch.zeros(1, device=device)
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        one.add_(1)
    torch.rand(1, device=device)


class _Graph:
    """A captured pass, with the memory that it reads and writes at each replay."""

    def __init__(self, run: Callable[[Tensor], Features], samples: Tensor) -> None:
        with torch.cuda.device(samples.device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._samples = torch.empty_like(samples)
            side.wait_stream(current)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(side):
                self._samples.copy_(samples)
                for _ in range(NUM_WARM_UPS):
                    run(self._samples)
                # A graph has memory of its own.
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                # Threads that pin memory or write shards beside this may go on.
                self._graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._features = self._record(run)
                except RuntimeError:
                    # A capture that fails leaves the allocator in it, which then frees nothing that two streams used.
                    with suppress(RuntimeError):
                        torch._C._cuda_endAllocateToPool(samples.device.index, self._graph.pool())
                    raise
            current.wait_stream(side)

    def _record(self, run: Callable[[Tensor], Features]) -> Features:
        try:
            return run(self._samples)
        finally:
            self._graph.capture_end()

    def takes(self, samples: Tensor) -> bool:
        """Whether the samples have the shape and kind of those that it was captured with."""
        return (samples.shape, samples.dtype, samples.device) == (self._samples.shape, self._samples.dtype, self._samples.device)

    def replay(self, samples: Tensor) -> Features:
        """The features of the samples, until the next replay."""
        self._samples.copy_(samples)
        self._graph.replay()
        return self._features
