"""What the training loop costs: images a second of `heads.training.loop.train` against a bare torch loop doing the same work.

    python tests/benchmarks/loop_speed.py [--pairs 10] [--threads 1]
    python tests/benchmarks/loop_speed.py --device cuda

Both fine-tune a whole network on pictures of `../shared/data/pets3` that are decoded and resized once and varied anew each epoch,
with AdamW, warm-up and cosine, clipped gradients and cross entropy, count loss and accuracy, validate after the epoch and
keep the best weights. The bare one is torchvision's network, a DataLoader and a dozen lines. Epochs of the two take turns in
one process, and a ratio is that of an epoch's rate to the mean rate of the bare epochs just before and after it.
On a CPU: MobileNetV2 at 128 px in float32, in about 5 minutes; the median ratio has to be 0.98. On a GPU: ResNet-50 and ViT-B/16
at 224 px in bfloat16, and a third rate: the same epochs with every batch already on the GPU. Ends with status 1 where the
bar is missed; without a GPU `--device cuda` says so and measures nothing.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from workspaces import SHARED, say

from heads.data.decoding import decode
from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import ImagePreprocess, build_draw, pixels_of, preprocess_for, resize, vary
from heads.data.inputs import Inputs
from heads.data.loading import Loaders, SampleLoader, num_loader_workers
from heads.model.model import build_model
from heads.model.precision import autocast
from heads.phases import compile_policy
from heads.spec import Augment, Fit, Head, Variant
from heads.training import loop
from heads.training.state import Epoch

PETS = SHARED / "data" / "pets3"
BREEDS = ("Abyssinian", "Bengal", "american_bulldog")
BAR = 0.98


@dataclass(frozen=True)
class Case:
    """What is trained, on how many images."""

    backbone: str
    image_size_px: int
    batch_size: int
    num_train: int
    num_val: int


CASES = {
    "cpu": [Case("mobilenet_v2", 128, 32, 256, 32)],
    "cuda": [Case("resnet50", 224, 128, 8192, 128), Case("vit_b_16", 224, 128, 8192, 128)],
}


class Pictures(Dataset[tuple[Tensor, int]]):
    """A data set as written by hand: pictures resized when they are first asked for, kept, and varied each time."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], preprocess: ImagePreprocess, augment: Augment) -> None:
        self.paths, self.labels, self.preprocess = paths, labels, preprocess
        self.draw, self.random = build_draw(preprocess, augment), np.random.default_rng(0)
        self.resized: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index not in self.resized:
            self.resized[index] = resize(pixels_of(decode(self.paths[index])), self.preprocess).to(torch.uint8)
        resized = self.resized[index]
        height, width = resized.shape[-2:]
        return vary(resized, self.draw(height, width, self.random), self.preprocess), self.labels[index]


class BareLoop:
    """The bare torch loop, an epoch at a time."""

    def __init__(
        self, case: Case, train_set: Pictures, val_set: Pictures, device: torch.device, workers: int, epochs: int
    ) -> None:
        self.device = device
        self.net = torchvision.models.get_model(case.backbone, num_classes=len(BREEDS), weights=None)
        self.net.to(device, memory_format=torch.channels_last)
        options: dict[str, Any] = {
            "batch_size": case.batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": device.type == "cuda",
        }
        self.train_loader = DataLoader(train_set, shuffle=True, **options)
        self.val_loader = DataLoader(val_set, **options)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 1e-3, weight_decay=1e-4)
        total = epochs * len(self.train_loader)
        self.rates = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1, (step + 1) * 10 / total) * 0.5 * (1 + math.cos(math.pi * step / total))
        )
        self.best, self.kept = -1.0, self.net.state_dict()

    def run_epoch(self) -> None:
        """Trains an epoch, validates, and keeps the weights where they are the best so far."""
        self.net.train()
        sums = torch.zeros(2, device=self.device)
        for images, labels in self._batches(self.train_loader):
            with autocast(self.device, "auto"):
                logits = self.net(images)
                loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            sums += torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()])
        self.net.eval()
        seen = torch.zeros(2, device=self.device)
        with torch.inference_mode():
            for images, labels in self._batches(self.val_loader):
                with autocast(self.device, "auto"):
                    logits = self.net(images)
                seen += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()])
        if not sums.isfinite().all():
            raise SystemExit("the bare loop diverged")
        if (accuracy := float(seen[1])) > self.best:
            self.best, self.kept = accuracy, copy.deepcopy(self.net.state_dict())

    def _batches(self, loader: DataLoader[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield (
                images.to(self.device, non_blocking=True, memory_format=torch.channels_last),
                labels.to(self.device, non_blocking=True),
            )


class HeldLoader(SampleLoader):
    """A loader whose first batch is all that it ever brings: what is left of an epoch is its steps."""

    def _read(self) -> Iterator[tuple[Inputs, dict[str, Tensor]]]:
        held = next(super()._read())
        for _ in self.steps:
            yield held


def run_case(case: Case, device: torch.device, num_pairs: int) -> tuple[list[float], list[float]]:
    """The ratios of a case in order, by the wall's clock and by processor time, after printing its rates."""
    variant = _variant(case, num_pairs + 1)
    preprocess = preprocess_for(case.backbone, case.image_size_px)
    train_paths, train_labels = _samples("trainval", case.num_train)
    val_paths, val_labels = _samples("test", case.num_val)
    room = 2**32
    train_set = ImageDataset(train_paths, {"breed": train_labels}, preprocess, "light", 0, room)
    val_set = ImageDataset(val_paths, {"breed": val_labels}, preprocess, cache_bytes=room)
    workers = num_loader_workers(device)
    bare_sets = Pictures(train_paths, train_labels, preprocess, "light"), Pictures(val_paths, val_labels, preprocess, "none")
    bare = BareLoop(case, *bare_sets, device, workers, num_pairs + 2)
    bare.run_epoch()
    clock = _Clock(device)

    def take_turns(epoch: Epoch, save: Any) -> None:
        clock.stop("ours")
        bare.run_epoch()
        clock.stop("bare")

    model = build_model(variant, {"breed": BREEDS}, None)
    loop.train(model, variant, train_set, val_set, device=device, on_epoch=take_turns)
    for name, told in (("ours", "heads.training.loop.train"), ("bare", "bare loop")):
        rates = sorted(case.num_train / one for one in clock.wall[name][1:])
        say(f"{case.backbone:<14} {told:<17} {statistics.median(rates):8.1f} images/s ({rates[0]:.1f} to {rates[-1]:.1f})")
    if device.type == "cuda":
        say(f"{case.backbone:<14} {'synthetic input':<17} {_held_rate(case, train_set, val_set, device):8.1f} images/s")
    return _ratios(clock.wall), _ratios(clock.processor)


class _Clock:
    """Seconds from one stop to the next, by who took them: on the wall, and of all this process's threads."""

    def __init__(self, device: torch.device) -> None:
        self.wall: dict[str, list[float]] = {"ours": [], "bare": []}
        self.processor: dict[str, list[float]] = {"ours": [], "bare": []}
        self._device = device
        self._last = time.perf_counter(), time.process_time()

    def stop(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        for taken, after, before in zip((self.wall, self.processor), now, self._last, strict=True):
            taken[name].append(after - before)
        self._last = now


def _ratios(seconds: dict[str, list[float]]) -> list[float]:
    # The first pair fills caches and starts loader workers.
    ours, bare = seconds["ours"][1:], seconds["bare"]
    return sorted((before + after) / 2 / own for own, before, after in zip(ours, bare[:-1], bare[1:], strict=True))


def _held_rate(case: Case, train_set: ImageDataset, val_set: ImageDataset, device: torch.device) -> float:
    variant = _variant(case, 4)
    loaders = [
        HeldLoader(each, case.batch_size, device, training=each is train_set, num_workers=0) for each in (train_set, val_set)
    ]
    (phase,) = compile_policy(variant)
    model = build_model(variant, {"breed": BREEDS}, None)
    stored = {phase: Loaders(*loaders)}
    told = loop.train(model, variant, train_set, val_set, device=device, on_epoch=lambda epoch, save: None, stored=stored)
    return case.num_train / statistics.median(epoch.seconds for epoch in told.epochs[1:])


def _variant(case: Case, epochs: int) -> Variant:
    fit = Fit(epochs=epochs, batch_size=case.batch_size, image_size_px=case.image_size_px)
    return Variant(backbone=case.backbone, heads=(Head(target="breed"),), freeze="none", fit=fit)


def _samples(split: str, wanted: int) -> tuple[list[Path], list[int]]:
    """So many images of a split and their breeds' numbers; repeated where there are fewer."""
    with (PETS / "labels.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["split"] == split]
    order = np.random.default_rng(0).permutation(len(rows))
    taken = [rows[order[number % len(rows)]] for number in range(wanted)]
    return [PETS / "images" / Path(row["file"]).name for row in taken], [BREEDS.index(row["breed"]) for row in taken]


def _spread(ratios: list[float]) -> str:
    return f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=CASES, default="cpu")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        say("skipped: torch finds no CUDA GPU on this machine")
        return
    torch.set_num_threads(asked.threads)
    cleared = True
    for case in CASES[asked.device]:
        ratios, of_processor = run_case(case, torch.device(asked.device), asked.pairs)
        median = statistics.median(ratios)
        cleared &= median >= BAR
        told = (
            f"{median:.3f} ({_spread(ratios)}); of processor time {statistics.median(of_processor):.3f} ({_spread(of_processor)})"
        )
        say(f"{case.backbone:<14} ratio, median of {len(ratios)} pairs and quartiles: {told}")
        say(f"{case.backbone:<14} at least {BAR}: {'yes' if median >= BAR else 'NO'}")
    raise SystemExit(0 if cleared else 1)


if __name__ == "__main__":
    main()
