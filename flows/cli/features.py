"""`headstart features`: status, check and pruning of the feature store."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from flows.cli import screen
from flows.cli.options import AsJson, Workspace, settings_of
from flows.errors import AskedWrongly
from flows.words import counted

if TYPE_CHECKING:
    from flows.stages.feature_store import FeaturesStatus, StoredTrunk

app = typer.Typer(
    help="Look after the features that frozen trunks gave, kept so that none is computed twice.", no_args_is_help=True
)


COLUMNS = ["trunk", "backbone", "sample", "views", "samples", "taps", "size", "last used"]


@app.command()
def status(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show what is stored of each trunk, the most recently used first, and how large it all is and may be."""
    from flows.stages.feature_store import features_status

    status = features_status(settings_of(workspace))
    if as_json:
        return screen.show_json(_json(status))
    if status.trunks:
        screen.show_table("Stored features", COLUMNS, [_row(trunk) for trunk in status.trunks])
    most = "; no bound is set" if status.max_bytes is None else f" of at most {screen.size(status.max_bytes)}"
    return screen.note(f"{status.root} holds {screen.size(status.bytes)}{most} (HEADSTART_FEATURES_MAX_BYTES)")


@app.command()
def verify(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Read every byte and list what is damaged; ends with status 1 where anything is.

    Nothing has to be done about it: the next retraining that needs these samples removes them and computes them again.
    """
    from flows.stages.feature_store import verify_features

    check = verify_features(settings_of(workspace))
    if as_json:
        screen.show_json(asdict(check))
    for shard in check.damaged:
        screen.warn(f"{shard.trunk_id}/{shard.shard}: {shard.reason}")
    screen.note(f"{check.root}: {counted(check.shards, 'shard')}, {screen.size(check.bytes)}; {len(check.damaged)} damaged")
    if check.damaged:
        screen.note("Nothing has to be done: the next retraining that needs these samples removes them and computes them again")
        raise typer.Exit(1)


@app.command()
def prune(
    max_size: Annotated[str, typer.Option("--max-size", help="What may stay, such as 10GB, 500MiB or 0.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Remove the features used least recently until the rest is as small as asked; they are computed again when needed."""
    from flows.stages.feature_store import prune_features

    most = _bytes(max_size)
    pruned = prune_features(settings_of(workspace), most)
    if as_json:
        return screen.show_json(asdict(pruned))
    freed, left = screen.size(pruned.freed_bytes), screen.size(pruned.bytes)
    return screen.note(f"{pruned.root}: {counted(pruned.freed_shards, 'shard')} removed, {freed} freed, {left} left")


def _bytes(text: str) -> int:
    try:
        num_bytes = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        num_bytes = -1
    if num_bytes < 0:
        raise AskedWrongly(f"--max-size {text!r} is no size; give bytes, or a number with a unit, such as 10GB, 500MiB or 0")
    return num_bytes


def _json(status: FeaturesStatus) -> dict[str, object]:
    """The status as one object; the fields of a trunk's `about` stand among its other fields."""
    trunks = []
    for trunk in map(asdict, status.trunks):
        about = trunk.pop("about")
        trunks.append({"trunk_id": trunk.pop("trunk_id"), **about, **trunk})
    return asdict(status) | {"trunks": trunks}


def _sample(trunk: StoredTrunk) -> str:
    """As what a trunk sees a sample, in words."""
    units = {"image_size_px": "px", "max_tokens": "tokens"}
    return next((f"{trunk.about[name]} {unit}" for name, unit in units.items() if name in trunk.about), "-")


def _row(trunk: StoredTrunk) -> list[object]:
    return [
        trunk.trunk_id,
        trunk.about.get("backbone", "unknown"),
        _sample(trunk),
        trunk.about.get("views", "-"),
        trunk.samples,
        "\n".join(f"{tap} {stored.layout}: {stored.samples}" for tap, stored in trunk.taps.items()),
        screen.size(trunk.bytes),
        datetime.fromisoformat(trunk.used_at).strftime("%Y-%m-%d %H:%M UTC"),
    ]
