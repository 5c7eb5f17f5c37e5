"""Texts of the registry for people: descriptions of models and versions, and tags in plain words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flows import mlflow_tags
from flows.records import Verdict

# The longest tag and description that every MLflow registry takes.
TAG_CHARS = DESCRIPTION_CHARS = 5000
UNPROMOTED = "Retrained and promoted by Headstart."


def holdout_tag(metrics: Mapping[str, float]) -> str:
    """A tag of measures named `<target>/<measure>`, a line each, to seven digits, as many as fit."""
    return _whole_lines([f"{name} {value:.7g}" for name, value in metrics.items()], TAG_CHARS)


def read_holdout(tags: Mapping[str, str]) -> dict[str, float]:
    """The measures on the holdout in a version's tags; earlier Headstarts wrote them as JSON."""
    if mlflow_tags.HOLDOUT in tags:
        lines = [line.rpartition(" ") for line in tags[mlflow_tags.HOLDOUT].splitlines()]
        return {name: float(value) for name, _, value in lines}
    try:
        return {name: float(value) for name, value in json.loads(tags.get(mlflow_tags.HOLDOUT_AS_JSON, "{}")).items()}
    except ValueError:  # cut short, as there were more of them than a tag takes
        return {}


def verdict_tag(verdict: Verdict) -> str:
    """A tag of the verdict: promoted or not, and the reasons, a line each."""
    return _whole_lines(["promoted" if verdict.promoted else "not promoted", *verdict.reasons], TAG_CHARS)


def describe_version(card: str, metrics: Mapping[str, float]) -> str:
    """A version's description: its measures on the holdout in a line, then its card, in Markdown."""
    measures = ", ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:12])
    more = f" and {len(metrics) - 12} more" if len(metrics) > 12 else ""
    return fitting(f"**On the holdout:** {measures}{more}\n\n{card}" if measures else card)


def describe_model(version: str, described: str) -> str:
    """A registered model's description: the version of its champion, and that version's description."""
    return fitting(f"**Champion: version {version}.** Retrained and promoted by Headstart.\n\n{described}")


def is_ours(description: str | None, tags: Mapping[str, Any]) -> bool:
    """Whether a model's description is empty or ours, unchanged by a person."""
    return not description or description == UNPROMOTED or tags.get(mlflow_tags.DESCRIPTION_HASH) == hash_of(description)


def hash_of(description: str) -> str:
    """Sixteen hex digits that name a description."""
    return hashlib.sha256(description.encode()).hexdigest()[:16]


def fitting(text: str, where: str = "bundle/card.md") -> str:
    """The text, or as many of its lines as fit into a description, and a line on the file that the rest is in."""
    if len(text) <= DESCRIPTION_CHARS:
        return text
    rest = f"\n\n… the whole card is `{where}` among this version's files."
    # A block of code that is cut must not swallow what follows.
    kept = _whole_lines(text.splitlines(), DESCRIPTION_CHARS - len(rest) - 4)
    return kept + ("\n```" if kept.count("```") % 2 else "") + rest


def _whole_lines(lines: list[str], limit: int) -> str:
    kept: list[str] = []
    for line in lines:
        if sum(map(len, kept)) + len(kept) + len(line) > limit:
            break
        kept.append(line)
    return "\n".join(kept) if kept else lines[0][:limit] if lines else ""
