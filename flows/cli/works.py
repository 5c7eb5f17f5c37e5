"""`headstart works`: status and pruning of the finished works."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli import screen
from flows.cli.options import AsJson, Workspace, settings_of
from flows.errors import AskedWrongly
from flows.words import counted, short

app = typer.Typer(
    help="Look after the works: each trained variant's folder under the storage root, with its bundle and its measures.",
    no_args_is_help=True,
)

SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
OlderThan = Annotated[str, typer.Option("--older-than", help="How long ago a work must have ended, such as 30d, 12h or 0d.")]
Unlogged = Annotated[
    bool, typer.Option("--unlogged", help="Also works of retrainings that did not end, and that nobody will run to their end.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")]


@app.command()
def status(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show how many works there are, what needs them, how large they are, and what pruning could free at most."""
    from flows.stages.works import works_status

    status = works_status(settings_of(workspace))
    if as_json:
        return screen.show_json(asdict(status))
    rows = [
        ("finished", status.finished),
        ("failed for good", status.failed),
        ("unfinished", status.unfinished),
        (f"of the present data version {short(status.data_version)}", status.of_data_version),
        ("of a version with an alias, or one that waits for approval", status.in_use),
        ("of a retraining that did not end, so that MLflow may lack them (prune --unlogged)", status.unlogged),
        ("could be pruned", status.prunable),
    ]
    screen.show_table("Works", ["works", "count"], rows)
    free = f"pruning could free {screen.size(status.prunable_bytes)}: headstart works prune --older-than 30d"
    return screen.note(f"{status.root} holds {screen.size(status.bytes)}; {free}")


@app.command()
def prune(
    older_than: OlderThan,
    workspace: Workspace = None,
    unlogged: Unlogged = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove the works that ended longer ago than that and that nothing needs; a retraining that asks again trains them again.

    What stays: all works of the workspace's present data version; those of versions, of any model, with an alias (champion,
    previous, challenger) or waiting for approval; and, without --unlogged, those of a retraining that did not end: it may be run
    again, and MLflow may lack them. An unfinished work counts from its last checkpoint. Refused while a retraining is at work on
    this storage, or while the registry does not answer. Registered versions can be pulled and rolled back to as before: MLflow
    keeps its own copies of bundles in its runs (see mlflow gc).

    Example: headstart works prune --older-than 30d --dry-run
    """
    from flows.stages.works import prune_works

    pruned = prune_works(settings_of(workspace), _seconds(older_than), unlogged=unlogged, dry_run=dry_run)
    if as_json:
        return screen.show_json(asdict(pruned))
    done = ("would be removed", "to be freed") if dry_run else ("removed", "freed")
    sizes = f"{screen.size(pruned.freed_bytes)} {done[1]}, {screen.size(pruned.bytes)} left"
    screen.note(f"{pruned.root}: {counted(pruned.removed, 'work')} {done[0]}, {sizes}")
    return screen.note("MLflow keeps its own copies of bundles in its runs; `mlflow gc` removes those of deleted runs")


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if match is None:
        raise AskedWrongly(f"--older-than {text!r} is no duration; give a number with a unit, such as 30d, 12h, 45m or 6w")
    return int(match[1]) * SECONDS[match[2]]
