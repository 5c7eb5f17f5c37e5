"""A work pool of a standing Prefect server, and the registration of plans' deployments with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError

from flows import deployments
from flows.errors import AskedWrongly, HeadstartError
from flows.plan import Plan
from flows.words import start_of

PROCESS, KUBERNETES = "process", "kubernetes"
TEMPLATE = "infra/kubernetes/base-job-template.json"


@dataclass(frozen=True)
class Registered:
    """A deployment that Prefect knows: `name` is `<plan>/<which>`; `cron` and `timezone` are None where it has no schedule."""

    name: str
    id: str
    cron: str | None
    timezone: str | None
    is_paused: bool


@dataclass(frozen=True)
class Registration:
    """What a registration left in Prefect: the pool and how many of its workers are online, the deployments, those removed."""

    pool: str
    pool_type: str
    num_workers_online: int
    deployments: tuple[Registered, ...]
    removed: tuple[str, ...]


def register(
    plans: Sequence[Plan],
    *,
    pool: str,
    image: str | None,
    workspace: Path,
    cron: str,
    timezone: str | None,
    source: str | None,
) -> Registration:
    """Register the plans' deployments with the work pool, in place of those of the same names; a paused schedule stays so.

    In a pool of processes, runs work in the workspace; in one of Kubernetes, in that which the pool's template names.

    Raises AskedWrongly on a pool that is missing or of another type, an image that is missing or out of place, or a cron or
    a time zone that Prefect does not take, HeadstartError if the server refuses what it is asked for.
    """
    wanted = [each for plan in plans for each in _of_plan(plan, cron, source, timezone)]
    with _asking(), get_client(sync_client=True) as client:
        found = _find(client, pool)
        variables = _job_variables(found, image, workspace)
        told, removed = [], []
        for deployment in wanted:
            before = _read(client, deployment.full_name)
            deployment.work_pool_name, deployment.job_variables = pool, variables
            if before is not None:
                deployments.keep_paused(deployment, before)
            deployment.apply()
            told.append(_registered(client, deployment.full_name))
        for plan in plans:
            stale = f"{plan.name}/{deployments.DEPLOYED[-1]}"
            if not plan.promotion.manual and (left := _read(client, stale)) and "headstart" in left.tags:
                client.delete_deployment(left.id)
                removed.append(stale)
        workers = client.read_workers_for_work_pool(pool)
    online = sum(worker.status == "ONLINE" for worker in workers)
    return Registration(pool, found.type, online, tuple(told), tuple(removed))


def _of_plan(plan: Plan, cron: str, source: str | None, timezone: str | None) -> tuple[RunnerDeployment, ...]:
    try:
        return deployments.of_plan(plan, cron, source, timezone)
    except ValueError as error:
        raise AskedWrongly(
            f"Prefect does not take --cron {cron!r} in the time zone {timezone or 'of this machine'}: {error}"
        ) from None


def _find(client: SyncPrefectClient, name: str) -> WorkPool:
    """The work pool of that name, of a type that we know how to fill."""
    advice = f"make it: prefect work-pool create {name} --type {PROCESS} (or --type {KUBERNETES} --base-job-template {TEMPLATE})"
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        others = ", ".join(sorted(pool.name for pool in client.read_work_pools())) or "none"
        raise AskedWrongly(f"Prefect has no work pool {name!r} (it has: {others}); {advice}") from None
    if found.type not in (PROCESS, KUBERNETES):
        raise AskedWrongly(
            f"the work pool {name!r} is of the type {found.type!r}; allowed: {PROCESS}, {KUBERNETES}. Name another with --pool, "
            f"or {advice.replace(name, f'{name}-2', 1)}"
        )
    return found


def _job_variables(pool: WorkPool, image: str | None, workspace: Path) -> dict[str, Any]:
    """What the runs of these deployments get beside what the pool's template gives them."""
    if pool.type == PROCESS:
        if image:
            raise AskedWrongly(
                f"--image {image} is of no use to the work pool {pool.name!r}, whose runs are processes: leave it out"
            )
        # Prefect starts a run in an empty folder if none is named; files that a plan names are found from the workspace.
        return {"working_dir": str(workspace), "env": {"HEADSTART_WORKSPACE": str(workspace)}}
    properties = pool.base_job_template.get("variables", {}).get("properties", {})
    if not image and not properties.get("image", {}).get("default"):
        raise AskedWrongly(
            f"the template of the work pool {pool.name!r} names no image: give one with --image, made by infra/Dockerfile"
        )
    return {"image": image} if image else {}


def _read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _registered(client: SyncPrefectClient, name: str) -> Registered:
    known = client.read_deployment_by_name(name)
    schedule = next((each for each in known.schedules), None)
    cron: Any = schedule and schedule.schedule
    paused = known.paused or (schedule is not None and not schedule.active)
    return Registered(name, str(known.id), getattr(cron, "cron", None), getattr(cron, "timezone", None), paused)


@contextmanager
def _asking() -> Iterator[None]:
    """For a block that asks Prefect's server: its refusals, and a loss of it, become errors of ours."""
    try:
        yield
    except (DeploymentApplyError, PrefectHTTPStatusError, PrefectException, httpx.HTTPError) as error:
        raise HeadstartError(
            f"Prefect did not take the deployments ({start_of(str(error).strip(), 500)}); what it took before that stays, "
            "and the same command goes on from there"
        ) from error
