"""Names, parameters, metrics and tables in the form that MLflow takes and shows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows import mlflow_tags
from flows.records import Verdict

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

    from flows.work_records import WorkResult

COUNTS = (
    *("num_parameters", "num_trained_parameters", "best_epoch", "num_forwarded", "num_features_read"),
    *("seconds", "shared_seconds", "gpu_seconds", "flops", "flops_alone"),
)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as parameters named `a.b.c`; lists are written as JSON, None is left out."""
    params: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{safe_name(str(key))}"
        if isinstance(value, Mapping):
            params |= flat(value, f"{name}.")
        elif value is not None:
            params[name] = (json.dumps(value) if isinstance(value, (list, tuple)) else str(value))[:6000]
    return params


def safe_name(name: str) -> str:
    """The name with letters replaced that MLflow does not allow in names; `val/breed/f1_macro` stays as it is."""
    return re.sub(r"[^/\w.\- :]", "_", name).replace("..", "__").strip("/")[:250] or "_"


def equals(tag: str, value: str) -> str:
    """The filter of an MLflow search for runs whose tag has this value. Raises ValueError if the value cannot be quoted."""
    if "'" in value or "\\" in value:
        raise ValueError(f"tag {tag} can not be searched for {value!r}: quotes and backslashes are not understood")
    return f"tags.`{tag}` = '{value}'"


def is_complete(run: Run) -> bool:
    """Whether all that is to be logged of a variant is in its run."""
    return run.data.tags.get(mlflow_tags.COMPLETE) == "true"


def metrics_at(measures: Mapping[str, float], step: int) -> list[Metric]:
    """MLflow's metrics of one step, with the present time."""
    from mlflow.entities import Metric

    now = now_ms()
    return [Metric(safe_name(key), float(value), now, step) for key, value in measures.items()]


def measures_of(result: WorkResult) -> dict[str, float]:
    """The numbers that MLflow shows of the kept model: its measures, its size, and what it cost."""
    counts = {name: count for name in COUNTS if (count := getattr(result, name)) is not None}
    return {**result.metrics, **counts}


def end_tags(result: WorkResult) -> dict[str, str]:
    """The tags of how a training ended: why, and in how many of its epochs it ran compiled, if its variant asks for that."""
    told = [epoch.is_compiled for epoch in result.epochs if epoch.is_compiled is not None]
    compiled = {mlflow_tags.COMPILED: f"{sum(told)} of {len(told)} epochs"} if told else {}
    return compiled if result.ended is None else {mlflow_tags.ENDED: result.ended, **compiled}


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return int(time.time() * 1000)


def retraining_name(plan: str, data_version: str) -> str:
    """The name of a retraining's run: its plan, its start in local time, and eight digits of its data version."""
    return f"{plan} {datetime.now().astimezone():%Y-%m-%d %H:%M}, data {data_version[:8]}"


def markdown_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, with floats to four digits."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [columns, ["---"] * len(columns), *([cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def summary(leaderboard: Sequence[Mapping[str, Any]], verdict: Verdict | None) -> tuple[dict[str, bytes], str]:
    """A retraining's leaderboard and verdict as files, by name, and as a Markdown note."""
    files: dict[str, bytes] = {}
    note: list[str] = []
    if verdict is not None:
        files["verdict.json"] = as_json(asdict(verdict))
        note.append("**Promoted.**" if verdict.promoted else "**Not promoted.**")
        note += [f"- {reason}" for reason in verdict.reasons]
    if leaderboard:
        columns = list(dict.fromkeys(key for row in leaderboard for key in row))
        rows = [[row.get(key) for key in columns] for row in leaderboard]
        files["leaderboard.json"] = as_json({"columns": columns, "data": rows})
        files["leaderboard.md"] = markdown_table(columns, leaderboard).encode()
        note += ["", markdown_table(columns, leaderboard)]
    return files, "\n".join(note)


def as_json(value: Any) -> bytes:
    """The value as indented JSON; objects that JSON does not know are written by `str`."""
    return json.dumps(value, indent=1, default=str).encode()
