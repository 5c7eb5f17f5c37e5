"""`headstart doctor`: whether every part is reachable, lets us in, and works with this version, and what to do where not."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli import screen
from flows.cli.options import AsJson, Workspace, settings_of
from flows.words import counted


def doctor(
    workspace: Workspace = None,
    timeout_seconds: Annotated[float, typer.Option(min=1, help="How long a part may take to answer.")] = 12.0,
    as_json: AsJson = False,
) -> None:
    """Say of every part whether it is reachable, lets us in and works with this version, and what to do where not.

    Workspace, storage, features, MLflow, Prefect, Ray and each of its nodes: Python, packages, GPUs, driver, NCCL. Takes 15
    seconds at most, starts nothing but a short job on a cluster that HEADSTART_RAY_ADDRESS names. Status 1 if anything is wrong.
    """
    from flows.stages import checkup

    found = checkup.check_up(settings_of(workspace), timeout_seconds)
    if as_json:
        screen.show_json(checkup.to_json(found))
    else:
        screen.show_table("Checkup", ["part", "state", "what was found"], [[p.name, p.state, p.words] for p in found.parts])
    num_wrong = sum(part.state == "wrong" for part in found.parts)
    screen.note(f"{counted(num_wrong, 'part')} of {len(found.parts)} wrong, found within {found.seconds:.0f} s")
    if not found.is_well:
        raise typer.Exit(1)
