"""The model card of a bundle: what the model is, what it was measured to do, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from heads.images import Preprocess
from heads.spec import Variant

MAX_CLASSES_SHOWN = 50


def write_card(
    variant: Variant, classes: Mapping[str, Sequence[str]], preprocess: Preprocess, facts: Mapping[str, object]
) -> str:
    """The card in Markdown; `metrics` among the facts becomes its table of measures, the other facts a list."""
    metrics = facts.get("metrics")
    sections = [
        f"# {variant.backbone}: {', '.join(classes)}",
        f"An image classifier made by Headstart: a {variant.backbone} backbone with "
        + " and ".join(f"a {head.design} head for `{head.target}`" for head in variant.heads)
        + f", freeze policy `{variant.freeze}`. Variant `{variant.variant_id}`.",
        "## What it tells apart",
        "\n".join(f"- `{target}`: {len(names)} classes: {_listed(names)}" for target, names in classes.items()),
        "## Where it comes from",
        _bullets({key: value for key, value in facts.items() if key != "metrics"} | {"fit": variant.fit.model_dump(mode="json")}),
        "## Measures",
        _table(metrics) if isinstance(metrics, Mapping) and metrics else "None were recorded.",
        "## How to use it",
        _usage(preprocess),
        "It answers with one of the classes above whatever it is shown, and its probabilities hold for pictures like those it "
        "was trained on.",
    ]
    return "\n\n".join(sections) + "\n"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_CLASSES_SHOWN
    return ", ".join(names[:MAX_CLASSES_SHOWN]) + (f" and {more} more in `classes.json`" if more > 0 else "")


def _bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in facts.items())


def _table(metrics: Mapping[str, object]) -> str:
    rows = [f"| {name} | {f'{x:.4f}' if isinstance(x, float) else x} |" for name, x in metrics.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])


def _usage(preprocess: Preprocess) -> str:
    return (
        "```python\nimport heads.bundle\n\n"
        'bundle = heads.bundle.load("this-folder")\n'
        'print(bundle.predict(["picture.jpg"]))\n```\n\n'
        f"Preprocessing is part of it: the shorter side to {preprocess.resize_px} px, then the middle "
        f"{preprocess.image_size_px} x {preprocess.image_size_px} px."
    )
