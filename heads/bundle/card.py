"""The model card of a bundle: what the model is, what it was measured to do, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from heads.catalogue import TASK_FACTS, Modality
from heads.data.samples import Preprocess
from heads.spec import Variant
from heads.tasks.table import TASKS

CALIBRATED = (
    "Measures of validation are those of temperature 1: the temperatures that make probabilities hold are fitted on validation "
    "after it was measured, and would flatter them. Measures of the holdout have them."
)

A_SAMPLE: Mapping[Modality, str] = {"image": "an image", "text": "a text"}
EXAMPLE: Mapping[Modality, str] = {"image": '"picture.jpg"', "text": '"The words of a text."'}
LIKE: Mapping[Modality, str] = {"image": "pictures", "text": "texts"}


def write_card(
    variant: Variant,
    classes: Mapping[str, Sequence[str]],
    preprocess: Preprocess,
    facts: Mapping[str, object],
    thresholds: Mapping[str, Sequence[float]] | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> str:
    """The card in Markdown; `metrics` among the facts becomes its table of measures, the other facts a list.

    `thresholds` are, by target of label sets, the probabilities from which on each label is predicted, `temperatures`, by target,
    what its logits are divided by.
    """
    metrics = facts.get("metrics")
    heads = {head.target: head for head in variant.heads}
    purposes = list(
        dict.fromkeys(TASK_FACTS[head.task].purpose.format(sample=A_SAMPLE[variant.modality]) for head in variant.heads)
    )
    sections = [
        f"# {variant.backbone}: {', '.join(classes)}",
        f"A model of {variant.modality}s made by Headstart. It {_joined(purposes)}: a "
        f"{variant.backbone} backbone with {_joined([f'a {head.design} head for `{head.target}`' for head in variant.heads])}, "
        f"freeze policy `{variant.freeze}`. Variant `{variant.variant_id}`.",
        "## What it tells apart",
        "\n".join(
            f"- `{target}`: {TASKS[heads[target].task].describe(heads[target], names, (thresholds or {}).get(target))}"
            + (f"; probabilities of temperature {(temperatures or {})[target]}" if target in (temperatures or {}) else "")
            for target, names in classes.items()
        ),
        "## Where it comes from",
        _bullets({key: value for key, value in facts.items() if key != "metrics"} | {"fit": variant.fit.model_dump(mode="json")}),
        "## Measures",
        _table(metrics) if isinstance(metrics, Mapping) and metrics else "None were recorded.",
        *([CALIBRATED] if temperatures else []),
        "## How to use it",
        _usage(variant, preprocess),
        _limits(variant),
    ]
    return "\n\n".join(sections) + "\n"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in facts.items())


def _table(metrics: Mapping[str, object]) -> str:
    rows = [f"| {name} | {f'{x:.4f}' if isinstance(x, float) else x} |" for name, x in metrics.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])


def _usage(variant: Variant, preprocess: Preprocess) -> str:
    return (
        "```python\nimport heads.bundle\n\n"
        'bundle = heads.bundle.load("this-folder")\n'
        f"answers = bundle.predict([{EXAMPLE[variant.modality]}])[0]\n"
        f"print(answers[{variant.heads[0].target!r}])\n```\n\n"
        + "\n".join(f"- `answers[{head.target!r}]` is {TASK_FACTS[head.task].answer}" for head in variant.heads)
        + f"\n\nPreprocessing is part of it: {preprocess.describe()}."
    )


def _limits(variant: Variant) -> str:
    limits = [f"for `{head.target}` it {TASK_FACTS[head.task].limit}" for head in variant.heads]
    text = f"{'; '.join(limits)}. What it says holds for {LIKE[variant.modality]} like those it was trained on."
    return text[0].upper() + text[1:]
