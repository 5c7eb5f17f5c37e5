"""Ends in Prefect, Ray and MLflow what killed processes left behind; runs whose process lives are left alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed

from flows.settings import Settings
from flows.stages.living_runs import end_crashed, forget, roll_call

NOT_ENDED = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)
MARKED_WITHIN = timedelta(minutes=1)
PAGE = 200


def end_what_nobody_runs(settings: Settings, *, all_of_them: bool = False) -> Iterator[str]:
    """End what killed processes left in Ray, MLflow and Prefect; yields a line for each thing ended.

    In Prefect these are the runs of this storage whose processes are gone. With `all_of_them`, for a server of this storage
    alone, they are also the runs that no process ever began, and all but the last of the missed nights.
    """
    yield from end_crashed(settings)
    alive, killed = roll_call(settings)
    if not killed and not all_of_them:
        return
    with get_client(sync_client=True) as client:
        for run in _runs_in(client, NOT_ENDED):
            if str(run.id) in killed or (all_of_them and str(run.id) not in alive and _is_served_or_old(run)):
                yield _end_run(client, run)
        if all_of_them:
            yield from _cancel_missed(client)
    for run_id in killed:
        forget(settings, run_id)


def _runs_in(client: SyncPrefectClient, kinds: Sequence[StateType]) -> list[FlowRun]:
    chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(kinds))))
    runs: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=chosen, offset=len(runs), sort=FlowRunSort.ID_DESC, limit=PAGE):
        runs += page
    return runs


def _is_served_or_old(run: FlowRun) -> bool:
    """Whether a run without a lock file has no process: a run of a command gets its file only a moment after its start."""
    since = run.state.timestamp if run.state else run.created
    return run.deployment_id is not None or since is None or datetime.now(UTC) - since > MARKED_WITHIN


def _end_run(client: SyncPrefectClient, run: FlowRun) -> str:
    before = run.state.name if run.state else "nothing"
    wanted = run.state is not None and run.state.type is StateType.CANCELLING
    words = "Nobody ran it any more; what it had trained is kept, and the next run goes on from there."
    after: State[Any] = Cancelled(message=words) if wanted else Crashed(message=words)
    client.set_flow_run_state(run.id, after, force=True)
    return f"Run {run.name} said {before} and nobody runs it any more: {after.name} now; the next run goes on from there"


def _cancel_missed(client: SyncPrefectClient) -> Iterator[str]:
    """Cancel the scheduled runs that each deployment missed, but for the last, which runs now; yields a line on them."""
    missed: dict[Any, list[FlowRun]] = {}
    for run in _runs_in(client, [StateType.SCHEDULED]):
        due = run.expected_start_time
        if run.auto_scheduled and due is not None and due < datetime.now(UTC):
            missed.setdefault(run.deployment_id, []).append(run)
    for runs in missed.values():
        runs.sort(key=lambda run: str(run.expected_start_time))
        for run in runs[:-1]:
            client.set_flow_run_state(run.id, Cancelled(message="Missed; a later run does the same."), force=True)
        if runs[:-1]:
            yield f"{len(runs)} scheduled runs were missed: the last of them runs now, the others are cancelled"


def end_gone(settings: Settings) -> None:
    """End in Prefect the runs of this storage whose processes were killed; each retraining does so, as `up` may not run."""
    _, killed = roll_call(settings)
    if not killed:
        return
    try:
        with get_client(sync_client=True) as client:
            for run in _runs_in(client, NOT_ENDED):
                if str(run.id) in killed:
                    get_run_logger().info(_end_run(client, run))
        for run_id in killed:
            forget(settings, run_id)
    except Exception as error:
        get_run_logger().warning("killed runs are not ended in Prefect now: %s", error)
