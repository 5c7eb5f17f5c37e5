"""Options that many verbs take, and the settings made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import screen
from flows.settings import Settings, enter

Workspace = Annotated[Path | None, typer.Option("--workspace", "-w", help="Another workspace than the current folder.")]
Endpoint = Annotated[str | None, typer.Option(help="The S3 server, if it is not that of AWS_ENDPOINT_URL_S3 or Amazon's.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]


def settings_of(workspace: Path | None) -> Settings:
    """The settings of a workspace, with this process's environment set for the tools that Headstart calls.

    Shows a warning for each variable of the person's environment that is changed or ignored.
    """
    settings, warnings = enter(workspace)
    for warning in warnings:
        screen.warn(warning)
    return settings
