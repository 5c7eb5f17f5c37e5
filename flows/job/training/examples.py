"""Examples of a finished variant's masks on validation images: a small image, true mask and predicted mask of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flows.records import DataVersion, Sample
from flows.sample_files import locate, locate_mask
from flows.work_folder import EXAMPLES
from flows.work_records import MaskExample
from heads import bundle as bundles
from heads.catalogue import TASK_FACTS
from heads.data.decoding import decode, decode_mask
from heads.spec import Head
from heads.tasks.answers import MaskPrediction

MAX_WIDTH_PX = 256
IGNORED = (128, 128, 128)


def save_examples(
    folder: Path, bundle_folder: Path, version: DataVersion, heads: Sequence[Head], count: int = 4
) -> list[MaskExample]:
    """Up to `count` validation images of every mask target, with their PNG files under `folder/examples/`.

    The files are at most 256 px wide, and show ignored values in grey.
    """
    masked = [head for head in heads if TASK_FACTS[head.task].tells == "pixels"]
    if not masked:
        return []
    (folder / EXAMPLES).mkdir(parents=True, exist_ok=True)
    bundle, rows = bundles.load(bundle_folder), []
    for number, head in enumerate(masked):
        chosen = _spread([s for s in version.samples if s.split == "val" and s.labels[head.target]], count)
        answers = bundle.predict([locate(version, sample) for sample in chosen], batch_size=1)
        for place, (sample, by_target) in enumerate(zip(chosen, answers, strict=True)):
            answer = by_target[head.target]
            assert isinstance(answer, MaskPrediction)
            rows.append(_save(folder, f"{number}-{place}", version, sample, head, answer))
    return rows


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` of the samples, evenly from first to last."""
    num = min(count, len(samples))
    return [samples[place * len(samples) // num] for place in range(num)]


def _save(folder: Path, name: str, version: DataVersion, sample: Sample, head: Head, answer: MaskPrediction) -> MaskExample:
    cell = sample.labels[head.target]
    assert cell is not None
    place = locate(version, sample)
    truth = decode_mask(locate_mask(version, cell), place, as_stored=version.masks[cell].as_stored)
    image = decode(place)
    counted = ~np.isin(truth, head.ignore)
    values = sorted({*np.unique(truth[counted]).tolist(), *np.unique(answer.mask).tolist()})
    images = {"image": image, "truth": _coloured(truth, counted), "told": _coloured(answer.mask)}
    files = {kind: f"{EXAMPLES}/{name}-{kind}.png" for kind in images}
    for kind, full_size in images.items():
        _small(full_size, smooth=kind == "image").save(folder / files[kind])
    return MaskExample(
        target=head.target,
        file=sample.file,
        right=float((truth == answer.mask)[counted].mean()) if counted.any() else 0.0,
        colours={str(value): _colour(value) for value in values},
        **files,
    )


def _coloured(values: NDArray[Any], counted: NDArray[np.bool_] | None = None) -> Image.Image:
    # Values above 255 wrap round and share colours, which still tells them from their neighbours.
    colours = np.array(MaskPrediction(values.astype(np.uint8), {}).picture().convert("RGB"))
    if counted is not None:
        colours[~counted] = IGNORED
    return Image.fromarray(colours)


def _colour(value: int) -> str:
    red, green, blue = np.asarray(_coloured(np.array([[value]])))[0, 0].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _small(image: Image.Image, *, smooth: bool) -> Image.Image:
    width = min(MAX_WIDTH_PX, image.width)
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST)
