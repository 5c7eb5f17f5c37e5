"""The deployments of plans in Prefect, and a process that serves them."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.cron import local_timezone
from flows.plan import Plan, form_values

DEPLOYED = ("nightly", "on-demand", "approve")
# A tag of a deployment that is paused since nobody serves it, not since a person paused it.
NOT_SERVED = "not-served"


def names_of(plan: Plan) -> tuple[str, ...]:
    """The names of a plan's deployments, such as `pets/nightly`."""
    return tuple(f"{plan.name}/{which}" for which in DEPLOYED[: 2 + plan.promotion.manual])


def of_plan(plan: Plan, cron: str, source: str | None, timezone: str | None = None) -> tuple[RunnerDeployment, ...]:
    """A plan's deployments: `nightly` on the cron, `on-demand`, and `approve` where promotions are manual.

    The cron counts in `timezone`, by default that of this machine. Raises ValueError on a wrong cron, AskedWrongly if
    this machine's time zone has no name.

    They have no concurrency limit of Prefect's: a killed run would never give its slot back, and every later run would wait.
    The session's lock, which dies with its holder, keeps to one retraining of a name at a time.
    """
    from flows.pipeline import approve, retrain

    named = retrain.with_options(name=plan.name)
    shared: dict[str, Any] = {
        "parameters": {"plan": form_values(plan), "source": source},
        "concurrency_limit": None,
        "entrypoint_type": EntrypointType.MODULE_PATH,
        "tags": ["headstart"],
    }
    # Without a time zone Prefect reads a cron in UTC.
    schedule = Cron(cron, timezone=timezone or local_timezone())
    nightly = named.to_deployment("nightly", schedule=schedule, description=f"Retrain {plan.name} every night.", **shared)
    by_hand = named.to_deployment("on-demand", description=f"Retrain {plan.name} now; the form is the plan.", **shared)
    made = [nightly, by_hand]
    if plan.promotion.manual:
        words = f"Make the version of {plan.name} that waits for approval the champion, or reject it."
        shared["parameters"] = {"name": plan.name}
        made.append(approve.with_options(name=plan.name).to_deployment("approve", description=words, **shared))
    deployments = tuple(each for each in made if isinstance(each, RunnerDeployment))
    assert len(deployments) == len(made), "called outside an event loop"
    return deployments


def keep_pauses(served: Sequence[RunnerDeployment]) -> list[str]:
    """Leave asleep the schedules that a person paused in Prefect; the names of those deployments."""
    asleep = []
    with get_client(sync_client=True) as client:
        for deployment in served:
            with contextlib.suppress(ObjectNotFound):
                if keep_paused(deployment, client.read_deployment_by_name(deployment.full_name)):
                    asleep.append(deployment.full_name)
    return asleep


def keep_paused(deployment: RunnerDeployment, before: DeploymentResponse) -> bool:
    """Leave a schedule asleep that a person paused, of the deployment or by itself; whether one did."""
    deployment.paused = before.paused and NOT_SERVED not in before.tags
    by_itself = bool(before.schedules) and not any(each.active for each in before.schedules)
    if by_itself:
        for schedule in deployment.schedules or ():
            schedule.active = False
    return deployment.paused or by_itself


def serve(served: Sequence[RunnerDeployment], on_known: Callable[[], object]) -> None:
    """Serve these deployments until the process is ended; calls `on_known` once Prefect knows them.

    At most as many runs go on at once as there are deployments; others wait.
    """
    runner = Runner(limit=len(served), pause_on_shutdown=False)
    for deployment in served:
        runner.add_deployment(deployment)
    on_known()
    with contextlib.suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(runner.start())


def how_to_start(plans: Sequence[Plan], api: str) -> str:
    """Lines that list the deployments, and the whole command that starts one, with the address that Prefect's own hint lacks."""
    served = ", ".join(name for plan in plans for name in names_of(plan))
    command = shlex.join([str(Path(sys.executable).with_name("prefect")), "deployment", "run", f"{plans[0].name}/on-demand"])
    return f"Serving {served}\nStart one in the browser, or by: PREFECT_API_URL={shlex.quote(api)} {command}"


def pause(plans: Sequence[Plan]) -> None:
    """Pause the plans' schedules in Prefect until they are served again."""
    with get_client(sync_client=True) as client:
        for plan in plans:
            with contextlib.suppress(ObjectNotFound):
                known = client.read_deployment_by_name(f"{plan.name}/nightly")
                if not known.paused:
                    client.update_deployment(known.id, DeploymentUpdate(tags=[*known.tags, NOT_SERVED]))
                    client.pause_deployment(known.id)
