"""The Prefect flows: a table of contents of a retraining, with its artifacts and hooks, and an approval."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, ParamSpec, TypeVar

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.flows import Flow
from prefect.utilities.annotations import quote

from flows.cleanup import end_gone
from flows.environment import user_name
from flows.plan import Plan, left_empty
from flows.settings import prepare_process, read_settings
from flows.stages.data import version_data
from flows.stages.living_runs import attending
from flows.stages.planning import plan_work
from flows.stages.promotion import promote
from flows.stages.reporting.closing import close, recall
from flows.stages.reporting.report import Report
from flows.stages.reporting.report_text import leaderboard, verdict_text
from flows.stages.scoring import score
from flows.stages.session import Event, listening, open_registry, open_session, stop_retraining
from flows.stages.training import train

P = ParamSpec("P")
R = TypeVar("R")


class StageRunner:
    """Runs stages as Prefect tasks and measures how many seconds each takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.monotonic()

    def run(self, name: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of `work`, run as the task `name`; values pass by reference, never copied or hashed by Prefect."""
        started = time.monotonic()
        as_task: Callable[..., R] = task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)(work)
        result = as_task(*map(quote, args), **kwargs)
        self.seconds[name] = round(time.monotonic() - started, 2)
        return result

    def finish(self) -> dict[str, float]:
        """The seconds of every stage, of what lay between them (such as waiting for another retraining), and their total."""
        total = round(time.monotonic() - self._start, 2)
        return {**self.seconds, "other": max(0.0, round(total - sum(self.seconds.values()), 2)), "total": total}


def stop_what_runs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the Ray job of a cancelled or crashed run and end its MLflow runs; runs in the serving process."""
    settings = read_settings()
    prepare_process(settings)
    stop_retraining(settings, str(flow_run.id))


@flow(
    name="retrain",
    flow_run_name="retrain-{plan.name}",
    on_cancellation=[stop_what_runs],
    on_crashed=[stop_what_runs],
    persist_result=False,
    log_prints=False,
)
def retrain(plan: Plan, source: str | None = None) -> Report:
    """Version the data, train every variant of the plan, and promote the best one if the evidence allows it.

    Args:
        plan: What to train, on which data, and when to promote: the keys of a plan file.
        source: A folder or an s3://bucket/prefix to bring new samples in from first; None: the workspace's data as it is.
    """
    settings = read_settings()
    prepare_process(settings)
    runner = StageRunner()
    end_gone(settings)
    with (
        attending(settings, _flow_run_id()),
        _progress(plan),
        open_session(settings, plan, flow_run_id=_flow_run_id(), asked_by=_asked_by()) as session,
    ):
        if defaults := _left_empty(plan):
            session.say(f"Warning: {defaults}")
        version = runner.run("data", version_data, session, source)
        work_plan = runner.run("plan", plan_work, session, version)
        if kept := runner.run("recall", recall, session.settings, work_plan):
            session.tell(Event("Nothing is left to do", share=1.0))
            report = replace(kept, seconds=runner.finish())
            _show(report, defaults)
            return report
        trained = runner.run("train", train, session, work_plan)
        scores = runner.run("score", score, session, work_plan, trained)
        runner.run("log", session.finish_logging)
        promotion = runner.run("promote", promote, session, work_plan, scores)
        report = close(session, work_plan, trained, scores, promotion, runner.finish())
    _show(report, defaults)
    return report


def _left_empty(plan: Plan) -> str:
    """The settings that a person left empty in a deployment's form, in words; '' if there are none, or the plan is a file's."""
    context = FlowRunContext.get()
    by_form = context and context.flow_run and context.flow_run.deployment_id
    names = left_empty(plan) if by_form else ()
    return f"left empty in the form, so that the default counts: {', '.join(names)}" if names else ""


def _asked_by() -> str:
    """Who asked, for the ledger: the process's user, and the flow run of a deployment, which a schedule or a person started."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return f"{user_name()}, by Prefect's flow run {run.name} ({run.id})" if run and run.deployment_id else user_name()


def _flow_run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


@contextlib.contextmanager
def _progress(plan: Plan) -> Iterator[None]:
    """Show the retraining's events in a progress artifact and in the run's log, from its wait for another retraining on."""
    logger = get_run_logger()
    key, shows = f"{_slug(plan.name)}-progress", "Features stored, epochs trained"
    artifact = create_progress_artifact(progress=0.0, key=key, description=shows)

    def tell(event: Event) -> None:
        if event.text:
            logger.info(event.text)
        if event.share is not None:
            update_progress_artifact(artifact_id=artifact, progress=round(100 * event.share, 1))  # type: ignore[arg-type]

    with listening(tell):
        yield


def _show(report: Report, defaults: str) -> None:
    """Make Prefect artifacts of the leaderboard and of the verdict, with the defaults that the form's empty fields got."""
    name = _slug(report.name)
    create_table_artifact(key=f"{name}-leaderboard", table=leaderboard(report), description="Variants, best on validation first")
    words = verdict_text(report) + (f"\n\n**{defaults[0].upper()}{defaults[1:]}**" if defaults else "")
    create_markdown_artifact(key=f"{name}-verdict", markdown=words, description="Promoted or not, and why")


def _slug(name: str) -> str:
    return name.lower().replace("_", "-")


@flow(name="approve", flow_run_name="approve-{name}", persist_result=False, log_prints=False)
def approve(name: str, reason: str, version: str | None = None, decision: Literal["approve", "reject"] = "approve") -> str:
    """Make a version that is proven, and waits for a person, the champion, or let it wait no more; returns its number.

    Args:
        name: The registered model's name.
        reason: Why, in words that the ledger keeps.
        version: The version that waits; None: the latest.
        decision: approve makes it the champion; reject lets it wait no more, and it is never promoted by itself.
    """
    settings = read_settings()
    prepare_process(settings)
    registry = open_registry(settings, _asked_by())
    decide, words = (registry.approve, "the champion") if decision == "approve" else (registry.reject, "rejected")
    decided = decide(name, version, reason)
    get_run_logger().info(f"{name}: version {decided.version} is {words}")
    return decided.version
