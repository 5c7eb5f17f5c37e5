"""What it brings that worker processes keep the memory that they free: a network forward and in training, on one thread.

    python tests/benchmarks/kept_memory.py [--pairs 3] [--backbone mobilenet_v2]

Processes with the settings that jobs get (`flows.cluster.jobs.KEEPING_MEMORY`) and with glibc's own take turns. Bar: in the
median of the pairs a forward pass over 32 images of 224 px is at least 1.2 times faster. About 2 minutes. Where the C library is
another than glibc the settings mean nothing, and the script says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

import torch
from workspaces import say

from flows.cluster.jobs import KEEPING_MEMORY
from heads.model.model import build_backbone
from heads.spec import Head, Variant

BAR = 1.2
FORWARD, TRAINING = (32, 224), (16, 128)


def measure(backbone: str) -> None:
    """Prints the milliseconds an image of a forward pass, then of a training step."""
    torch.set_num_threads(1)
    stages = build_backbone(Variant(backbone=backbone, heads=(Head(target="kind"),)), None).to(memory_format=torch.channels_last)
    for (num_images, side), training in ((FORWARD, False), (TRAINING, True)):
        images = torch.randn(num_images, 3, side, side).to(memory_format=torch.channels_last)
        stages.train(training)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            with torch.set_grad_enabled(training):
                features = stages(images)
                if training:
                    features.mean().backward()
            del features
            seconds.append(time.perf_counter() - start)
        say(str(1000 * statistics.median(seconds[1:]) / num_images))


def main() -> int:
    """The exit status: 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.backbone)
        return 0
    if platform.libc_ver()[0] != "glibc":
        say("the C library is not glibc: nothing to measure")
        return 0
    plain = {name: value for name, value in os.environ.items() if name not in KEEPING_MEMORY}
    ratios: list[list[float]] = []
    for _ in range(asked.pairs):
        words = [sys.executable, __file__, "--measure", "--backbone", asked.backbone]
        told = [subprocess.run(words, env=env, capture_output=True, check=True).stdout for env in (plain, plain | KEEPING_MEMORY)]
        own, kept = ([float(line) for line in one.split()] for one in told)
        ratios.append([before / after for before, after in zip(own, kept, strict=True)])
        say(f"forward {own[0]:.1f} -> {kept[0]:.1f} ms an image, training {own[1]:.1f} -> {kept[1]:.1f}")
    forward, training = (statistics.median(column) for column in zip(*ratios, strict=True))
    say(f"{forward:.2f} times faster forward (bar {BAR}), {training:.2f} in training")
    return 0 if forward >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
