"""First weights as a plan names them: a word, a file, a folder or the address of an object."""

from __future__ import annotations

import re
from pathlib import Path

from flows.addresses import without_password
from flows.plan.allowed import suggestion

WEIGHTS = "imagenet, none, champion, a weights file (.pth or .pt), or the address s3://bucket/key of one; for bert a folder"
EACH_WEIGHTS = "as in {mobilenet_v2: imagenet, resnet18: ./r18.pth}"
WORDS = ("imagenet", "none", "champion")
# Without credentials or options: plans are kept and shown.
IN_BUCKET = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*/[^?#\n]*[^\s?#/]")


def check_weights(named: str) -> None:
    """Raises ValueError if this names no weights."""
    if "://" in named and not IN_BUCKET.fullmatch(named):
        raise ValueError(f"weights {without_password(named)!r} are no plain s3://bucket/key; allowed: {WEIGHTS}")
    if named not in WORDS and not Path(named).suffix and "/" not in named:
        raise ValueError(f"weights {named!r} are unknown; {suggestion(named, WORDS)}allowed: {WEIGHTS}")


def check_weights_of_texts(backbone: str, named: str) -> None:
    """Raises ValueError if a backbone of texts cannot have these weights."""
    if backbone == "bert" and (named in WORDS or "://" in named):
        raise ValueError(
            f"backbone bert has the size and the words of its weights, and weights is {named!r}; give a folder with "
            "config.json, model.safetensors and vocab.txt or tokenizer.json, or use transformer, which learns from nothing"
        )
    if backbone != "bert" and named != "none":
        raise ValueError(f"{backbone} learns its words from the training texts, and weights is {named!r}; allowed: none")
