"""Options that many verbs take, and the settings that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import screen
from flows.settings import Settings, enter

Workspace = Annotated[Path | None, typer.Option("--workspace", "-w", help="Another workspace than the current folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]


def settings_of(workspace: Path | None) -> Settings:
    """The settings of a workspace, with this process's environment set for the tools that Headstart calls.

    Warns of what in the person's environment does not count there.
    """
    settings, left_out = enter(workspace)
    for each in left_out:
        screen.warn(each)
    return settings
