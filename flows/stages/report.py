"""The report of a retraining: the object behind `--json`, kept beside the work, and its tables and words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import isfinite, nan
from pathlib import Path
from typing import Any

from flows import plan as plans
from flows import tracking
from flows.files import read_json, write_json
from flows.plan import Plan
from flows.records import ModelVersion, TrainResult
from flows.registry import Registry, read_holdout
from flows.settings import Settings
from flows.stages.agenda import Agenda, failures, plan_works
from flows.stages.desk import Desk, open_registry
from flows.stages.work import Outcome, Scores

# What a retraining counts of its own doing.
COUNTED = ("trunk_forwards", "features_read", "flops_done", "flops_saved", "variants_trained")


def close(
    desk: Desk, agenda: Agenda, trained: TrainResult, scores: Scores, outcome: Outcome, seconds: dict[str, float]
) -> dict[str, Any]:
    """The report, after ending the parent run with it and keeping it for the next time the same is asked."""
    from flows.pictures import leaderboard as draw_leaderboard

    assert desk.parent_run_id is not None
    report = _report(agenda, trained, scores, outcome, seconds)
    report |= {"run_id": desk.parent_run_id, "experiment_id": desk.tracker.connect()}
    report = with_pages(report, desk.settings.tracking)
    rows = leaderboard(report)
    counts = {f"counts/{name}": float(value) for name, value in report["counts"].items()}
    measures = {name: float(value) for name, value in report["holdout"].items()} | counts
    names, values = [row["variant"] for row in rows], [nan if (x := row[agenda.metric]) is None else x for row in rows]
    chosen = next(i for i, row in enumerate(rows) if row["state"].startswith("candidate"))
    pictures = {"leaderboard.png": draw_leaderboard(names, values, agenda.metric, chosen)}
    desk.tracker.close_retraining(
        desk.parent_run_id, "FINISHED", leaderboard=rows, verdict=outcome.verdict, metrics=measures, pictures=pictures
    )
    write_json(_file(desk.settings, agenda), report)
    return report


def finished(settings: Settings, plan: Plan) -> dict[str, Any] | None:
    """The kept report of a retraining that has nothing left to do, or None.

    Raises what `plan_works` and `failures` raise, and Unreachable when MLflow does not answer.
    """
    from flows import dataset

    started = time.monotonic()
    tracking.reach(settings.tracking, settings.artifacts)
    agenda = plan_works(plan, dataset.read_version(settings.workspace))
    failures(settings, agenda)
    report = recall(settings, agenda)
    return report and report | {"seconds": {"total": round(time.monotonic() - started, 2)}}


def recall(settings: Settings, agenda: Agenda) -> dict[str, Any] | None:
    """The kept report of this agenda if nothing of it is left to do, or None.

    Nothing is left when every variant is trained, the same rules have judged them, and the champion they left is still the
    champion. Its `seconds` are none.
    """
    kept = read_json(_file(settings, agenda))
    if kept is None or not all(agenda.is_done(settings, work) for work in agenda.works):
        return None
    champion = open_registry(settings).current(agenda.plan.name).get("champion")
    if (champion.version if champion else None) != kept["champion"]:
        return None
    report: dict[str, Any] = kept | {
        "variants": [variant | {"reused": True} for variant in kept["variants"]],
        "counts": kept["counts"] | dict.fromkeys(COUNTED, 0) | {"variants_reused": len(kept["variants"])},
        "seconds": {},
    }
    return with_pages(report, settings.tracking)


def with_pages(report: Mapping[str, Any], address: str) -> dict[str, Any]:
    """The report with the pages that MLflow at this address shows of its runs and its version; None where it shows none."""
    experiment = report.get("experiment_id")  # reports of before do not name it

    def page(run_id: str | None) -> str | None:
        return tracking.run_page(address, experiment, run_id) if experiment and run_id else None

    model = report["model"]
    version = model and model | {"page": tracking.version_page(address, model["name"], model["version"])}
    variants = [variant | {"page": page(variant["run_id"])} for variant in report["variants"]]
    return {**report, "page": page(report.get("run_id")), "variants": variants, "model": version}


def leaderboard(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The variants, best on validation first, as rows with the same columns; the candidate is marked.

    Beside the measure that ranks stand the primary ones of the other targets. Measures have four digits and None where there
    is none; where MLflow has pages, each row names that of its run. What is looked for most stands left: Prefect cuts there.
    """
    metric = report["metric"]
    column = metric.rpartition("/")[0]
    # Kept reports of before there were several tasks do not name them.
    primary = [f"{target}/{plans.PRIMARY[task]}" for target, task in report.get("tasks", {}).items() if target != column]
    ranked = sorted(report["variants"], key=lambda v: -v["metrics"].get(f"val/{metric}", -1.0))
    return [
        {
            "variant": variant["label"],
            **{name: _rounded(variant["metrics"].get(f"val/{name}")) for name in (metric, *primary)},
            "loss": _rounded(variant["metrics"].get(f"val/{column}/loss")),
            "state": ("candidate, " if variant["variant_id"] == report["candidate"] else "")
            + ("found done" if variant["reused"] else "trained"),
            **({"run": variant["page"]} if variant.get("page") else {}),
            "trained parameters": variant["num_trained_parameters"],
            "images forwarded": variant.get("num_forwarded", 0),
            "features read": variant.get("num_features_read", 0),
            "seconds": round(variant["seconds"], 1),
        }
        for variant in ranked
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 4)


def verdict_text(report: dict[str, Any], *, links: bool = True) -> str:
    """The verdict in words (Markdown): what was decided, every reason, who is champion now, and links to MLflow's pages."""
    verdict, model = report["verdict"], report["model"]
    decided = "Promoted" if verdict["promoted"] else "Not promoted"
    lines = [f"**{decided}**: variant {report['candidate']} of {report['name']}", ""]
    lines += [*(f"- {reason}" for reason in verdict["reasons"]), ""]
    if report["failed"]:
        lines += [*(f"Failed and left out: {one['label']}: {one['reason']}" for one in report["failed"]), ""]
    if report["holdout"]:
        lines += ["Candidate on the holdout:", "", *(f"- {line}" for line in describe_measures(report["holdout"])), ""]
    champion = f"version {report['champion']}" if report["champion"] else "nobody yet"
    candidate = f" (this candidate is version {model['version']})" if model else ""
    lines.append(f"Champion of {report['name']}: {champion}{candidate}")
    if links and (shown := pages(report)):
        lines += ["", "In MLflow: " + ", ".join(f"[{what}]({page})" for what, page in shown.items())]
    return "\n".join(lines)


def pages(report: Mapping[str, Any]) -> dict[str, str]:
    """MLflow's pages by what they show: the retraining, the candidate's run, its version; none where MLflow is no server."""
    model, of = report["model"], {variant["variant_id"]: variant.get("page") for variant in report["variants"]}
    found = {"this retraining": report.get("page"), "the candidate's run": of.get(report["candidate"])}
    if model:
        found[f"version {model['version']} of {model['name']}"] = model.get("page")
    return {what: page for what, page in found.items() if page}


def describe_measures(metrics: Mapping[str, float]) -> list[str]:
    """A line a target of measures named `<target>/<measure>`."""
    told: dict[str, list[str]] = {}
    for name, value in metrics.items():
        target, _, measure = name.rpartition("/")
        told.setdefault(target, []).append(f"{measure} {value:.4f}")
    return [f"{target}: {', '.join(measures)}" for target, measures in told.items()]


def describe_model(registry: Registry, name: str) -> dict[str, Any]:
    """A registered model's champion, previous and challenger, or None in their place. Raises AskedWrongly on an unknown name."""
    current = registry.current(name)
    if not current:
        registry.find(name, "champion")
    return {"name": name} | {alias: _summary(current.get(alias)) for alias in ("champion", "previous", "challenger")}


def _summary(version: ModelVersion | None) -> dict[str, Any] | None:
    if version is None:
        return None
    told = {name: version.tags.get(f"headstart.{name}") for name in ("variant_id", "data_version", "run_id")}
    return {"version": version.version, **told, "metrics": read_holdout(version.tags)}


def _file(settings: Settings, agenda: Agenda) -> Path:
    return settings.storage / "retrainings" / f"{agenda.key}.json"


def _naming(row: plans.VariantRow) -> dict[str, Any]:
    names = {"variant_id": row.variant_id, "label": row.label, "backbone": row.backbone}
    return names | {"heads": dict(row.heads), "freeze": row.freeze}


def _report(agenda: Agenda, trained: TrainResult, scores: Scores, outcome: Outcome, seconds: dict[str, float]) -> dict[str, Any]:
    model = outcome.model
    champion = model if model and "champion" in model.aliases else scores.champion
    rows = {row.variant_id: row for row in plans.describe([work.variant for work in agenda.works])}
    return {
        "name": agenda.plan.name,
        "key": agenda.key,
        "metric": agenda.metric,
        "tasks": {head.target: head.task for head in agenda.works[0].variant.heads},
        "data_version": agenda.version.digest,
        "variants": [
            _naming(rows[variant.variant.variant_id])
            | {
                "run_id": variant.run_id,
                "reused": variant.reused,
                "metrics": dict(variant.metrics),
                "num_trained_parameters": variant.num_trained_parameters,
                "num_forwarded": variant.num_forwarded,
                "num_features_read": variant.num_features_read,
                "seconds": variant.seconds,
                "gpu_seconds": variant.gpu_seconds,
            }
            for variant in trained.variants
        ],
        "failed": [
            _naming(rows[one.variant.variant_id]) | {"run_id": one.run_id, "reason": one.reason} for one in trained.failed
        ],
        "candidate": scores.candidate.variant.variant_id,
        "holdout": dict(scores.table.metrics),
        "verdict": {
            "promoted": outcome.verdict.promoted,
            "reasons": list(outcome.verdict.reasons),
            "figures": dict(outcome.verdict.figures),
        },
        "model": {"name": model.name, "version": model.version, "aliases": list(model.aliases)} if model else None,
        "champion": champion.version if champion else None,
        "counts": _count(agenda, trained),
        "seconds": _seconds(seconds, trained),
    }


def _seconds(stages: Mapping[str, float], trained: TrainResult) -> dict[str, float]:
    """The seconds of every stage, that of the training in two: its batches, and the start and the records around them."""
    around = max(0.0, round(stages.get("train", trained.seconds) - trained.seconds, 2))
    told = {**stages, "train": trained.seconds, "train_around": around}
    last = {name: told.pop(name) for name in ("other", "total") if name in told}
    return told | last


def _count(agenda: Agenda, trained: TrainResult) -> dict[str, int]:
    """What this retraining did; FLOPs are multiply-adds of backbones, saved against a job a variant without stored features."""
    new = [variant for variant in trained.variants if not variant.reused]
    done = trained.flops_stored + sum(variant.flops for variant in new)
    return {
        "samples": len(agenda.version.samples),
        "trunk_forwards": trained.num_forwarded,
        "features_read": sum(variant.num_features_read for variant in new),
        "flops_done": done,
        "flops_saved": sum(variant.flops_alone for variant in new) - done,
        "variants_trained": len(new),
        "variants_reused": len(trained.variants) - len(new),
    }
