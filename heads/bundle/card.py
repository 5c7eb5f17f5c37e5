"""The model card of a bundle: what the model is, what it was measured to do, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from heads.data.images import Preprocess
from heads.spec import Head, Task, Variant

MAX_CLASSES_SHOWN = 50
SORTS: Mapping[Task, str] = {
    "classification": "tells what class an image is of",
    "multilabel": "tells which labels an image has",
    "segmentation": "tells the class of every pixel",
}
ANSWERS: Mapping[Task, str] = {
    "classification": "a `Prediction`: `label`, its `probability`, and every class's in `probabilities`",
    "multilabel": "`Labels`: `labels`, those whose probability reaches their threshold, and every label's in `probabilities`",
    "segmentation": "a `MaskPrediction` of the image's own size: `mask`, an array of the values above, and each one's `shares`; "
    '`picture().save("mask.png")` writes it as it is',
}
LIMITS: Mapping[Task, str] = {
    "classification": "answers with one of its classes whatever it is shown",
    "multilabel": "answers with any number of its labels, none included",
    "segmentation": "gives every pixel one of its values",
}


def write_card(
    variant: Variant,
    classes: Mapping[str, Sequence[str]],
    preprocess: Preprocess,
    facts: Mapping[str, object],
    thresholds: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """The card in Markdown; `metrics` among the facts becomes its table of measures, the other facts a list.

    `thresholds` are, by target of label sets, the probabilities from which on each label is told.
    """
    metrics = facts.get("metrics")
    heads = {head.target: head for head in variant.heads}
    sections = [
        f"# {variant.backbone}: {', '.join(classes)}",
        f"A model of images made by Headstart. It {_joined(list(dict.fromkeys(SORTS[head.task] for head in variant.heads)))}: a "
        f"{variant.backbone} backbone with {_joined([f'a {head.design} head for `{head.target}`' for head in variant.heads])}, "
        f"freeze policy `{variant.freeze}`. Variant `{variant.variant_id}`.",
        "## What it tells apart",
        "\n".join(_outputs(heads[target], names, (thresholds or {}).get(target)) for target, names in classes.items()),
        "## Where it comes from",
        _bullets({key: value for key, value in facts.items() if key != "metrics"} | {"fit": variant.fit.model_dump(mode="json")}),
        "## Measures",
        _table(metrics) if isinstance(metrics, Mapping) and metrics else "None were recorded.",
        "## How to use it",
        _usage(variant, preprocess),
        _limits(variant),
    ]
    return "\n\n".join(sections) + "\n"


def _outputs(head: Head, names: Sequence[str], thresholds: Sequence[float] | None) -> str:
    match head.task:
        case "classification":
            return f"- `{head.target}`: {len(names)} classes: {_listed(names)}"
        case "multilabel":
            told = [f"{name} ({x:.3f})" for name, x in zip(names, thresholds, strict=True)] if thresholds else names
            since = (
                ", each told from the probability in brackets on" if thresholds else ", each told from a probability of 0.5 on"
            )
            return f"- `{head.target}`: {len(names)} labels{since}: {_listed(told)}"
        case "segmentation":
            ignored = f"; pixels of {_listed(list(map(str, head.ignore)))} counted for nothing" if head.ignore else ""
            return f"- `{head.target}`: masks of {len(names)} values: {_listed(names)}{ignored}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_CLASSES_SHOWN
    return ", ".join(names[:MAX_CLASSES_SHOWN]) + (f" and {more} more in `classes.json`" if more > 0 else "")


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in facts.items())


def _table(metrics: Mapping[str, object]) -> str:
    rows = [f"| {name} | {f'{x:.4f}' if isinstance(x, float) else x} |" for name, x in metrics.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])


def _usage(variant: Variant, preprocess: Preprocess) -> str:
    size = f"{preprocess.image_size_px} x {preprocess.image_size_px} px"
    way = (
        f"the whole image brought to {size}"
        if preprocess.whole
        else f"the shorter side to {preprocess.resize_px} px, then the middle {size}"
    )
    return (
        "```python\nimport heads.bundle\n\n"
        'bundle = heads.bundle.load("this-folder")\n'
        'answers = bundle.predict(["picture.jpg"])[0]\n'
        f"print(answers[{variant.heads[0].target!r}])\n```\n\n"
        + "\n".join(f"- `answers[{head.target!r}]` is {ANSWERS[head.task]}" for head in variant.heads)
        + f"\n\nPreprocessing is part of it: {way}."
    )


def _limits(variant: Variant) -> str:
    told = [f"for `{head.target}` it {LIMITS[head.task]}" for head in variant.heads]
    text = f"{'; '.join(told)}. What it says holds for pictures like those it was trained on."
    return text[0].upper() + text[1:]
