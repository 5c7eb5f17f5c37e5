"""How samples get from files to a device: read in loader processes, made ready in batches, one batch ahead of the one in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import default_collate

from heads.data.inputs import Inputs

Raw = TypeVar("Raw")


class Feed(Protocol):
    """A data set's samples on their way to a device.

    Items are read and joined to batches in loader processes, `finish` runs in the process that trains. An item may be anything
    that crosses from one to the other.
    """

    @property
    def is_costly(self) -> bool:
        """Whether reading a sample takes so long that other processes should do it, if there are cores to spare."""
        ...

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape of every sample as it is finished, if that is known before one is read."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """A sample with its labels, varied as its epoch says."""
        ...

    def length(self, index: int) -> int:
        """How long a sample is, where a batch costs as much as its longest one; the same for all where it does not."""
        ...

    def reader(self, index: int, number: int) -> Callable[[], Any]:
        """A function that reads a sample without labels, in the view of this number; small, if `is_costly`."""
        ...

    @property
    def collate(self) -> Callable[[Sequence[Any]], Any]:
        """The function that joins items to one batch; small likewise."""
        ...

    def finish(self, batch: Any) -> tuple[Inputs, dict[str, Tensor]]:
        """A batch's inputs and its labels by target; on the device what is prepared there."""
        ...


class _Samples(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, dict[str, Tensor], int]: ...

    def view(self, index: int, number: int) -> Tensor: ...

    def length(self, index: int) -> int: ...

    def collate(self, samples: Sequence[Tensor]) -> Inputs: ...


class SampleFeed:
    """Samples that are prepared one at a time where they are read, on the CPU."""

    is_costly = False
    sample_shape = None

    def __init__(self, samples: _Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor], int]:
        return self._samples[index]

    def length(self, index: int) -> int:
        """A sample's length."""
        return self._samples.length(index)

    def reader(self, index: int, number: int) -> Callable[[], tuple[Tensor, dict[str, Tensor], int]]:
        """A function that reads the sample in a view, with no labels."""
        return lambda: (self._samples.view(index, number), {}, index)

    def collate(self, items: Sequence[tuple[Tensor, dict[str, Tensor], int]]) -> tuple[Inputs, dict[str, Tensor]]:
        """The inputs and the labels of samples."""
        samples, labels, _ = zip(*items, strict=True)
        return self._samples.collate(samples), default_collate(list(labels))

    def finish(self, batch: tuple[Inputs, dict[str, Tensor]]) -> tuple[Inputs, dict[str, Tensor]]:
        """The same batch: nothing is left to do."""
        return batch


def deliver(
    batches: Iterable[Raw],
    finish: Callable[[Raw], tuple[Inputs, dict[str, Tensor]]],
    device: torch.device,
    *,
    channels_last: bool = True,
) -> Iterator[tuple[Raw, Inputs, dict[str, Tensor]]]:
    """Each batch as it was read, its inputs and its labels on the device.

    On a CUDA device the next batch is copied and prepared, on a stream of its own, while one is in use.
    """

    def place(batch: Raw) -> tuple[Raw, Inputs, dict[str, Tensor]]:
        inputs, labels = finish(batch)
        placed = {target: column.to(device, non_blocking=True) for target, column in labels.items()}
        return batch, inputs.to(device, channels_last=channels_last), placed

    if device.type != "cuda":
        yield from map(place, batches)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting = None
    for batch in batches:
        with torch.cuda.stream(stream):
            made = place(batch), stream.record_event()
        if waiting:
            yield _handed_over(*waiting, device)
        waiting = made
    if waiting:
        yield _handed_over(*waiting, device)


def _handed_over(
    delivered: tuple[Raw, Inputs, dict[str, Tensor]], ready: torch.cuda.Event, device: torch.device
) -> tuple[Raw, Inputs, dict[str, Tensor]]:
    """What was made on another stream, for the stream in use: it waits there until that is ready, and keeps the memory."""
    current, (_, inputs, labels) = torch.cuda.current_stream(device), delivered
    current.wait_event(ready)
    features = inputs.features.values() if isinstance(inputs.features, Mapping) else (inputs.features,)
    words = () if inputs.words is None else (inputs.words,)
    for tensor in (*features, *words, *labels.values()):
        tensor.record_stream(current)
    return delivered
