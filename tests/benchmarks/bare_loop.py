"""What a person would run without a store: a plain pass over pictures, and a training loop of one frozen variant."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import get_model
from torchvision.transforms import v2
from workspaces import MOBILENET_V2

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
FORWARD_BATCH_SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Labelled = list[tuple[str, int]]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Files with class numbers as a person would read them for MobileNetV2: decoded, resized and cut whenever asked."""

    def __init__(self, files: Labelled, image_size_px: int) -> None:
        self._files = files
        resized_px = round(image_size_px * 256 / 224)
        steps = [v2.Resize(resized_px, antialias=True), v2.CenterCrop(image_size_px), v2.ToImage()]
        self._transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self._files[index]
        with Image.open(file) as image:
            return self._transform(image.convert("RGB")), label


def frozen(backbone: str) -> nn.Module:
    """torchvision's model, frozen, MobileNetV2 with real weights; from here on this process has one thread."""
    torch.set_num_threads(1)
    net: nn.Module = get_model(backbone)
    if backbone == "mobilenet_v2":
        net.load_state_dict(torch.load(MOBILENET_V2, weights_only=True))
    return net.requires_grad_(False).eval()


def forward(backbone: str, files: Labelled, image_size_px: int) -> float:
    """The seconds of one pass over the images, decoding included."""
    net, loader = frozen(backbone), DataLoader(Pictures(files, image_size_px), batch_size=FORWARD_BATCH_SIZE)
    start = time.perf_counter()
    with torch.inference_mode():
        for images, _ in loader:
            net(images)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Bare:
    """A variant for the bare loop, of which `num_run` of its epochs are run."""

    design: str
    epochs: int
    num_run: int
    image_size_px: int
    batch_size: int
    num_classes: int
    train: Labelled
    val: Labelled


def build_head(design: str, num_classes: int, channels: int = 1280) -> nn.Sequential:
    """The head that the product builds: normalised mean features, and a classifier that starts near 0."""
    classifier = nn.Linear(256 if design == "mlp" else channels, num_classes)
    nn.init.normal_(classifier.weight, std=1e-3)
    nn.init.zeros_(classifier.bias)
    hidden = [nn.Linear(channels, 256), nn.GELU(), nn.Dropout(0.2)] if design == "mlp" else []
    return nn.Sequential(nn.LayerNorm(channels, elementwise_affine=False), *hidden, classifier)


def build_optimizer(head: nn.Module, num_updates: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW that decays matrices alone; a warm-up over a tenth of the updates, at most 100, times a cosine over all of them."""
    groups = [
        {"params": [p for p in head.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in head.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, warm_up = torch.optim.AdamW(groups, lr=LEARNING_RATE), min(100, math.ceil(0.1 * num_updates))

    def factor(update: int) -> float:
        return min(1.0, (update + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * update / num_updates))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_bare(asked: Bare) -> tuple[float, float]:
    """The seconds of the epochs that were run, and the best validation accuracy of them."""
    features = frozen("mobilenet_v2").get_submodule("features")
    torch.manual_seed(0)
    head = build_head(asked.design, asked.num_classes)
    train = DataLoader(Pictures(asked.train, asked.image_size_px), batch_size=asked.batch_size, shuffle=True)
    val = DataLoader(Pictures(asked.val, asked.image_size_px), batch_size=asked.batch_size)
    optimizer, schedule = build_optimizer(head, asked.epochs * len(train))
    # As the product ranks epochs: by accuracy, then by loss.
    best, start = (0.0, -math.inf), time.perf_counter()
    for _ in range(asked.num_run):
        head.train()
        for images, labels in train:
            with torch.no_grad():
                seen = features(images).mean(dim=(2, 3))
            nn.functional.cross_entropy(head(seen), labels).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        best = max(best, validate(features, head.eval(), val))
    return time.perf_counter() - start, best[0]


def validate(features: nn.Module, head: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> tuple[float, float]:
    """The accuracy, and the negative loss."""
    num_right = num_seen = 0
    loss = 0.0
    with torch.no_grad():
        for images, labels in loader:
            logits = head(features(images).mean(dim=(2, 3)))
            num_right, num_seen = num_right + int((logits.argmax(dim=1) == labels).sum()), num_seen + len(labels)
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return num_right / num_seen, -loss / num_seen


def side_by_side(function: Callable[..., Any], asked: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What each call gives, all at the same time in a process of one thread each."""
    with get_context("spawn").Pool(len(asked)) as pool:
        return pool.starmap(function, asked)
