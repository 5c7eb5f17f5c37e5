"""`headstart retrain` on a terminal: bars while it works, then the leaderboard, the verdict and what to do next."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import partial

from rich.progress import Progress, TaskID

from flows import prefect_server, temporary_folders
from flows.cli import screen
from flows.mlflow_connection import connect
from flows.places.check import check_root
from flows.plan import Plan
from flows.settings import Settings
from flows.stack.orphans import end_orphans
from flows.stages import planning
from flows.stages.background.warming import warming
from flows.stages.preflight import dead_servers, preflight_check
from flows.stages.reporting import report_text
from flows.stages.reporting.closing import Known, look_up
from flows.stages.reporting.report import Report
from flows.stages.session import Event, listening
from flows.words import counted
from heads.catalogue import TASK_FACTS, Modality

FEATURES = "features"
# What stands for samples on a line that asks for predictions.
ASKED: Mapping[Modality, str] = {"image": "IMAGE...", "text": '--text "..."'}


def run(settings: Settings, plan: Plan, source: str | None) -> Report:
    """The report of a retraining: the kept one if nothing is left to do, else that of a flow run in this process."""
    check_root(settings.root)
    # With a source, it is not known yet whether anything is left to do.
    known = look_up(settings, plan) if source is None else None
    if known and known.report:
        return known.report
    preflight_check(settings, plan, prefect=settings.prefect)
    end_orphans(settings, screen.note)
    if words := dead_servers(settings):
        screen.warn(words)
    temporary_folders.sweep()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    where = f"at {settings.prefect}" if settings.prefect else "without a standing server"
    screen.note(f"Retraining {plan.name}; Prefect {where}")
    # A source may bring nothing new, and then Ray is not needed.
    warm = contextlib.nullcontext() if source else warming(settings, plan.name, plan.workers.group())
    planned = planning.planned(known.work_plan if known else None)
    with warm, planned, screen.progress_bars() as bars, listening(_Bars(bars)):
        meanwhile = None if settings.prefect else partial(_load, settings, known)
        with prefect_server.of_its_own(meanwhile, settings.storage / "prefect"):
            from flows import pipeline

            return pipeline.retrain(plan, source)


def _load(settings: Settings, known: Known | None) -> None:
    """Load what the stages will need: Prefect, MLflow, and torch if it is known that something is left to train."""
    from flows import pipeline  # noqa: F401

    connect(settings.tracking)
    if known:
        from heads.trunks.trunk import stored_taps

        for work in known.work_plan.works:
            # It prices the stages of the backbone, which is remembered.
            stored_taps(work.variant)


class _Bars:
    """Draws a bar of features, then one a variant, from the events of a retraining."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._drawn: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        if event.text:
            screen.note(event.text)
        if event.epochs and FEATURES not in self._drawn:
            self._drawn[FEATURES] = self._bars.add_task(FEATURES, visible=False, state="")
        if event.features:
            done, total = event.features
            self._bars.update(self._drawn[FEATURES], completed=done, total=total, visible=True)
        for name, (done, total) in event.epochs.items():
            if name not in self._drawn:
                self._drawn[name] = self._bars.add_task(name, total=total, state="")
            self._bars.update(self._drawn[name], completed=done)


def show(report: Report) -> None:
    """Print the leaderboard, the verdict in words, the champion, and what to do next."""
    rows = report_text.leaderboard(report)
    # A terminal has little room: the samples forwarded and features read are summed up below the table.
    columns = [column for column in rows[0] if column not in (report_text.forwarded_column(report), "features read", "run")]
    screen.show_table(f"Leaderboard of {report.name} on validation", columns, [[_cell(row[c]) for c in columns] for row in rows])
    words = report_text.verdict_text(report, links=False).replace("**", "")
    pages = [f"{what} in MLflow: {page}" for what, page in report_text.pages(report).items()]
    screen.out.print("\n".join([words, *pages]), markup=False, soft_wrap=True)
    counts = report.counts
    screen.out.print(
        f"\n{counted(counts.variants_trained, 'variant')} trained, {counts.variants_reused} found done; {_describe_work(report)}"
        + ", ".join(f"{stage.replace('_', ' ')} {taken:.1f} s" for stage, taken in report.seconds.items()),
        markup=False,
        soft_wrap=True,
    )
    if report.champion:
        name = report.name
        output = " --output MASKS" if any(TASK_FACTS[task].tells == "pixels" for task in report.tasks.values()) else ""
        samples = ASKED[report.modality]
        verbs = [f"predict {name}@champion {samples}{output}", f"models show {name}", f"models pull {name}@champion DEST"]
        lines = [f"  headstart {verb}" for verb in verbs] + ["  headstart up PLAN    (Prefect and MLflow in the browser)"]
        screen.out.print("\n".join(["", "Next:", *lines]), markup=False, soft_wrap=True)


def _cell(value: object) -> object:
    return "-" if value is None else value


def _describe_work(report: Report) -> str:
    """The number of samples forwarded through trunks, and of stored features read instead, in words."""
    counts = report.counts
    words = f"{counted(counts.trunk_forwards, report.modality)} forwarded, {counted(counts.features_read, 'feature')} read; "
    if counts.samples_fetched:
        words += f"{counts.samples_fetched} fetched from the data remote; "
    if counts.features_read and counts.flops_done:
        words += f"{(counts.flops_done + counts.flops_saved) / counts.flops_done:.1f} x the arithmetic saved; "
    return words
