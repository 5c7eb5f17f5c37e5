"""A report in words and rows: the leaderboard, the verdict, and links to MLflow's pages."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from flows.plan import PRIMARY
from flows.stages.reporting.report import Report, ReportedBaseline, ReportedVariant

Cell = str | int | float | None


def leaderboard(report: Report) -> list[dict[str, Cell]]:
    """The variants and the baselines, best on validation first, as rows with the same columns; the candidate is marked.

    The measure that ranks comes first, then the primary measures of the other targets, with four digits, None if missing.
    Rows link their run if MLflow has pages. The columns that people look for most stand left: Prefect cuts off the right.
    """
    name = f"val/{report.metric}"
    has_pages = any(variant.page for variant in report.variants)
    rows = [(variant.metrics.get(name, -1.0), _row(report, variant, has_pages=has_pages)) for variant in report.variants]
    baselines = [plain for plain in (report.baseline, *report.other_baselines) if plain]
    rows += [(plain.metrics.get(name, -1.0), _baseline_row(report, plain, has_pages=has_pages)) for plain in baselines]
    return [row for _, row in sorted(rows, key=lambda one: -one[0])]


def _row(report: Report, variant: ReportedVariant, *, has_pages: bool) -> dict[str, Cell]:
    return {
        "variant": variant.label,
        **_measures(report, variant.metrics),
        "state": ("candidate, " if variant.variant_id == report.candidate else "")
        + ("found done" if variant.reused else "trained"),
        **({"run": variant.page} if has_pages else {}),
        "trained parameters": variant.num_trained_parameters,
        forwarded_column(report): variant.num_forwarded,
        "features read": variant.num_features_read,
        "seconds": round(variant.seconds, 1),
    }


def forwarded_column(report: Report) -> str:
    """The name of the column that counts samples forwarded."""
    return f"{report.modality}s forwarded"


def _baseline_row(report: Report, baseline: ReportedBaseline, *, has_pages: bool) -> dict[str, Cell]:
    return {
        "variant": f"baseline ({baseline.label})",
        **_measures(report, baseline.metrics),
        "state": "not ranked",
        **({"run": None} if has_pages else {}),
        "trained parameters": baseline.num_parameters,
        forwarded_column(report): 0,
        "features read": baseline.num_samples if baseline.kind == "probe" else 0,
        "seconds": round(baseline.seconds, 1),
    }


def _measures(report: Report, metrics: Mapping[str, float]) -> dict[str, Cell]:
    """The measure that ranks, the primary ones of the other targets, and the loss."""
    column = report.metric.rpartition("/")[0]
    primary = [f"{target}/{PRIMARY[task]}" for target, task in report.tasks.items() if target != column]
    measured = {name: _rounded(metrics.get(f"val/{name}")) for name in (report.metric, *primary)}
    return {**measured, "loss": _rounded(metrics.get(f"val/{column}/loss"))}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 4)


def verdict_text(report: Report, *, links: bool = True) -> str:
    """The verdict in words (Markdown): what was decided, every reason, who is champion now, and links to MLflow's pages."""
    decided = "Promoted" if report.verdict.promoted else "Proven, waits" if report.verdict.waits else "Not promoted"
    judged = f"challenger {report.judged}" if report.judged else f"variant {report.candidate}"
    lines = [f"**{decided}**: {judged} of {report.name}", ""]
    lines += [f"Candidate: {report.why}", ""] if report.why else []
    lines += [f"Baseline: {words}", ""] if (words := describe_baseline(report)) else []
    lines += [*(f"- {reason}" for reason in report.verdict.reasons), ""]
    if report.failed:
        lines += [*(f"Failed and left out: {one.label}: {one.reason}" for one in report.failed), ""]
    if report.holdout:
        lines += ["Candidate on the holdout:", "", *(f"- {line}" for line in describe_measures(report.holdout)), ""]
    champion = f"version {report.champion}" if report.champion else "nobody yet"
    candidate = f" (this candidate is version {report.model.version})" if report.model else ""
    lines.append(f"Champion of {report.name}: {champion}{candidate}")
    if links and (shown := pages(report)):
        lines += ["", "In MLflow: " + ", ".join(f"[{what}]({page})" for what, page in shown.items())]
    return "\n".join(lines)


def describe_baseline(report: Report) -> str:
    """What the baseline is and measures on validation, and whether the candidate is better there; '' if there is none."""
    plain, name = report.baseline, f"val/{report.metric}"
    metrics = next((one.metrics for one in report.variants if one.variant_id == report.candidate), {})
    if plain is None or name not in plain.metrics or name not in metrics:
        return ""
    note = f"; {plain.note}" if plain.note else ""
    told = f"{plain.label}, {name} {plain.metrics[name]:.4f}{note}"
    if metrics[name] > plain.metrics[name]:
        return told
    return f"{told}. **The candidate is not better on validation**: {metrics[name]:.4f}"


def pages(report: Report) -> dict[str, str]:
    """MLflow's pages by what they show: the retraining, the candidate's run, its version; empty if MLflow is no server."""
    model, by_variant = report.model, {variant.variant_id: variant.page for variant in report.variants}
    links = {"this retraining": report.page, "the candidate's run": by_variant.get(report.candidate)}
    if model:
        links[f"version {model.version} of {model.name}"] = model.page
    return {what: page for what, page in links.items() if page}


def describe_measures(metrics: Mapping[str, float]) -> list[str]:
    """A line for each target, with its measures; `metrics` are named `<target>/<measure>`."""
    measures: dict[str, list[str]] = {}
    for name, value in metrics.items():
        target, _, measure = name.rpartition("/")
        measures.setdefault(target, []).append(f"{measure} {value:.4f}")
    return [f"{target}: {', '.join(lines)}" for target, lines in measures.items()]
