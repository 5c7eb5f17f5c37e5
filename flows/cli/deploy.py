"""`headstart deploy`: the deployments of plans, registered with a standing Prefect server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import screen
from flows.cli.options import AsJson, Workspace, settings_of
from flows.errors import AskedWrongly

if TYPE_CHECKING:
    from flows.work_pool import Registered, Registration


def deploy(
    plan_files: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="The plans to register.")],
    pool: Annotated[str, typer.Option(help="The work pool, of the type process or kubernetes.")] = "headstart",
    image: Annotated[str | None, typer.Option(help="The image of a Kubernetes pool's runs, made by infra/Dockerfile.")] = None,
    cron: Annotated[str, typer.Option(help="When the nightly deployments run.")] = "0 2 * * *",
    timezone: Annotated[
        str | None, typer.Option(help="The time zone of the cron, such as Europe/Berlin; left out: this machine's.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="A folder or s3:// prefix to bring new samples in from first.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Register the plans' deployments with a standing Prefect server; its workers run them.

    Two deployments a plan: nightly and on-demand; `approve` too where promotions are manual. Run again, it changes what
    differs; a schedule that somebody paused stays paused.

    Example: headstart deploy pets.yaml --pool headstart --cron "0 2 * * *"
    """
    from flows import dataset, prefect_server
    from flows.cron import check_cron
    from flows.plan import read_plan
    from flows.stages.planning import find_mismatches

    check_cron(cron)
    plans = [read_plan(file) for file in plan_files]
    if twice := sorted({plan.name for plan in plans if sum(plan.name == other.name for other in plans) > 1}):
        raise AskedWrongly(f"two plans are named {', '.join(twice)}: their deployments would replace each other; rename one")
    settings = settings_of(workspace)
    if settings.prefect is None:
        raise AskedWrongly(
            "no Prefect server is named to register with: set HEADSTART_PREFECT_ADDRESS to http://host:4200/api; "
            "`headstart up` serves plans without one"
        )
    dataset.open_workspace(settings.workspace)
    prefect_server.check(settings.prefect)
    from flows import work_pool  # Prefect is imported once the environment names its server

    for mismatch in find_mismatches(settings, plans):
        screen.warn(mismatch)
    registration = work_pool.register(
        plans, pool=pool, image=image, workspace=settings.workspace, cron=cron, timezone=timezone, source=source
    )
    if as_json:
        return screen.show_json(asdict(registration))
    return _show(registration, settings.prefect)


def _show(registration: Registration, address: str) -> None:
    title = f"Deployments of the work pool {registration.pool} ({registration.pool_type}) at {address}"
    screen.show_table(title, ["deployment", "runs"], [[each.name, _when(each)] for each in registration.deployments])
    for name in registration.removed:
        screen.note(f"{name} is removed: the plan's promotions are not manual")
    if not registration.num_workers_online:
        screen.warn(
            f"no worker of the pool is online, so no run starts yet; start one: prefect worker start --pool {registration.pool}"
        )


def _when(deployment: Registered) -> str:
    if deployment.cron is None:
        return "when asked"
    paused = "; paused, resume it in Prefect" if deployment.is_paused else ""
    return f"{deployment.cron} in {deployment.timezone}{paused}"
