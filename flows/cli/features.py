"""`headstart features`: the feature store, as a person looks after it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from flows.cli import screen
from flows.cli.options import AsJson, Workspace, settings_of
from flows.errors import AskedWrongly

app = typer.Typer(
    help="Look after the features that frozen trunks gave, kept so that none is computed twice.", no_args_is_help=True
)


COLUMNS = ["trunk", "backbone", "px", "views", "samples", "taps", "size", "last used"]


@app.command()
def status(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show what is stored of each trunk, the most recently used first, and how large it all is and may be."""
    from flows import stages

    told = stages.features_status(settings_of(workspace))
    if as_json:
        return screen.show_json(told)
    if told["trunks"]:
        screen.show_table("Stored features", COLUMNS, [_row(trunk) for trunk in told["trunks"]])
    most = "; no bound is set" if told["max_bytes"] is None else f" of at most {screen.size(told['max_bytes'])}"
    return screen.note(f"{told['root']} holds {screen.size(told['bytes'])}{most} (HEADSTART_FEATURES_MAX_BYTES)")


@app.command()
def verify(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Read every byte and list what is damaged; ends with status 1 where anything is.

    Nothing has to be done about it: the next retraining that needs these samples removes them and computes them again.
    """
    from flows import stages

    told = stages.verify_features(settings_of(workspace))
    if as_json:
        screen.show_json(told)
    for one in told["damaged"]:
        screen.warn(f"{one['trunk_id']}/{one['shard']}: {one['reason']}")
    screen.note(f"{told['root']}: {told['shards']} shards, {screen.size(told['bytes'])}; {len(told['damaged'])} damaged")
    if told["damaged"]:
        raise typer.Exit(1)


@app.command()
def prune(
    max_size: Annotated[str, typer.Option("--max-size", help="What may stay, such as 10GB, 500MiB or 0.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Remove the features used least recently until the rest is as small as asked; they are computed again when needed."""
    from flows import stages

    most = _bytes(max_size)
    told = stages.prune_features(settings_of(workspace), most)
    if as_json:
        return screen.show_json(told)
    freed, left = screen.size(told["freed_bytes"]), screen.size(told["bytes"])
    return screen.note(f"{told['root']}: {told['freed_shards']} shards removed, {freed} freed, {left} left")


def _bytes(text: str) -> int:
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        found = -1
    if found < 0:
        raise AskedWrongly(f"--max-size {text!r} is no size; give bytes, or a number with a unit, such as 10GB, 500MiB or 0")
    return found


def _row(trunk: dict[str, Any]) -> list[object]:
    return [
        trunk["trunk_id"],
        trunk.get("backbone", "unknown"),
        trunk.get("image_size_px", "-"),
        trunk.get("views", "-"),
        trunk["samples"],
        "\n".join(f"{tap} {found['layout']}: {found['samples']}" for tap, found in trunk["taps"].items()),
        screen.size(trunk["bytes"]),
        datetime.fromisoformat(trunk["used_at"]).strftime("%Y-%m-%d %H:%M UTC"),
    ]
