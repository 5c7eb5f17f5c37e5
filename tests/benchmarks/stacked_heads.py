"""What 64 heads side by side cost against one: seconds of training on the same stored features, and a step's milliseconds.

    python tests/benchmarks/stacked_heads.py [--device cuda] [--num-train 16384] [--num-val 2048] [--heads 64]

Made-up features of 1280 channels in 10 classes, held on the device, read in batches of 256 for 4 epochs by
`heads.fused.training.train_together`, validation and the best weights' keeping included. `linear` and `mlp` heads, each with
rates of their own; one head and all take turns, and the medians of the turns are compared, after one that warms up.
Bar, on a GPU: 64 at most 1.5 times one. On a CPU the arithmetic of 64 heads is 64 times that of one: no bar there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from heads.catalogue import BACKBONE_STAGES
from heads.data.loading import Loaders
from heads.features.reading import Features, HeldTap
from heads.features.shards import Layout
from heads.fused.training import TrainingRequest, train_together
from heads.model.model import build_backbone, build_model
from heads.phases import Tap
from heads.spec import Fit, Head, Variant
from heads.training.state import TrainingOutcome
from heads.trunks.stored import FeatureLoader

CHANNELS, NUM_CLASSES, BATCH_SIZE = 1280, 10, 256
BAR = 1.5


class Labelled:
    """Samples of which only the labels are known."""

    size = (224, 224)

    def __init__(self, labels: Tensor) -> None:
        self.labels = {"kind": labels}
        self.digests = [""] * len(labels)

    def __len__(self) -> int:
        return len(self.labels["kind"])

    def set_epoch(self, epoch: int) -> None:
        pass

    def labels_in_view(self, indices: Tensor, number: int) -> dict[str, Tensor]:
        return {"kind": self.labels["kind"][indices]}

    def words(self, indices: Sequence[int]) -> None:
        pass

    def occurrences(self, target: str) -> tuple[Tensor, int]:
        return self.labels["kind"].bincount(minlength=NUM_CLASSES), len(self)


def loader_of(num_samples: int, seed: int, device: torch.device, *, training: bool) -> FeatureLoader:
    """Features of classes that overlap, so that a head has something to learn."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (num_samples,), generator=random)
    centres = torch.randn(NUM_CLASSES, CHANNELS, generator=torch.Generator().manual_seed(0)) / 10
    rows = (centres[labels] + torch.randn(num_samples, CHANNELS, generator=random))[:, :, None, None].to(device)
    tap = Tap(len(BACKBONE_STAGES["mobilenet_v2"]) - 1, "pooled")
    features = Features({tap.name: HeldTap(Layout((CHANNELS, 1, 1), rows.dtype), rows)}, num_samples)
    samples: Any = Labelled(labels)
    return FeatureLoader(samples, [features], [tap], BATCH_SIZE, device, training=training)


def variants_of(design: str, num_heads: int, **fit: Any) -> list[Variant]:
    heads = (Head(target="kind", design=design),)
    rates = [0.0003 * 1.05**number for number in range(num_heads)]
    fits = [Fit(epochs=4, batch_size=BATCH_SIZE, learning_rate=rate, augment="none", **fit) for rate in rates]
    return [Variant(backbone="mobilenet_v2", heads=heads, fit=each) for each in fits]


def train(variants: Sequence[Variant], backbone: nn.Sequential, loaders: Loaders) -> tuple[float, float]:
    """Seconds, and the mean accuracy."""
    ends: dict[Variant, Any] = {}
    classes = {"kind": [str(number) for number in range(NUM_CLASSES)]}
    requests = [
        TrainingRequest(
            build_model(variant, classes, None, backbone=backbone), variant, lambda *_: None, partial(ends.__setitem__, variant)
        )
        for variant in variants
    ]
    start = time.perf_counter()
    train_together(requests, loaders)
    if loaders.train.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    assert all(isinstance(end, TrainingOutcome) for end in ends.values())
    return seconds, statistics.mean(end.metrics["val/kind/accuracy"] for end in ends.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-train", type=int, default=16384)
    parser.add_argument("--num-val", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    loaders = Loaders(loader_of(asked.num_train, 1, device, training=True), loader_of(asked.num_val, 2, device, training=False))
    backbone, missed = build_backbone(variants_of("linear", 1)[0], None), False
    for design in ("linear", "mlp"):
        one, many = variants_of(design, 1), variants_of(design, asked.heads)
        # Once to warm up.
        train(many, backbone, loaders)
        turns = [(train(one, backbone, loaders), train(many, backbone, loaders)) for _ in range(asked.turns)]
        seconds = [statistics.median(turn[side][0] for turn in turns) for side in (0, 1)]
        steps = 4 * len(loaders.train) / 1000
        ratio = seconds[1] / seconds[0]
        missed |= device.type == "cuda" and ratio > BAR
        sys.stdout.write(
            f"{design}: 1 head {seconds[0]:.3f} s ({seconds[0] / steps:.2f} ms a step, accuracy {turns[-1][0][1]:.4f}), "
            f"{asked.heads} heads {seconds[1]:.3f} s ({seconds[1] / steps:.2f} ms a step, mean accuracy {turns[-1][1][1]:.4f}), "
            f"ratio {ratio:.2f}\n"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
