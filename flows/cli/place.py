"""Where a verb works: the settings of its workspace, and this process's environment set for the tools below."""

from __future__ import annotations

from pathlib import Path

from flows.cli import screen
from flows.settings import Settings, enter


def settings_of(workspace: Path | None) -> Settings:
    """The settings of a workspace; what of the person's environment has to be left out of account is said."""
    settings, left_out = enter(workspace)
    for each in left_out:
        screen.warn(each)
    return settings
