"""`headstart models`: show and roll back registered models."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import delivery, screen
from flows.cli.options import AsJson, Workspace, settings_of
from flows.words import short

if TYPE_CHECKING:
    from flows.registry import LedgerEntry, Registry

app = typer.Typer(help="Look at, pull, publish and roll back the registered models.", no_args_is_help=True)

AsOf = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"], help="A time in UTC, such as 2026-11-27T03:00."
    ),
]
Name = Annotated[str, typer.Argument(help="The model's name: the plan's `name`.")]


def _registry(workspace: Path | None) -> Registry:
    from flows.stages.session import open_registry

    settings = settings_of(workspace)
    return open_registry(settings)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _decision(entry: LedgerEntry) -> str:
    if entry.kind == "verdict":
        return "promoted" if entry.promoted else "proven, waits" if entry.waits else "not promoted"
    return {"rollback": "rolled back", "rollback undone": "brought back", "approval": "approved", "rejection": "rejected"}.get(
        entry.kind, entry.kind
    )


def _origin(entry: LedgerEntry) -> str:
    level = f"level spent {entry.level_spent:.2g}" if entry.level_spent else ""
    return "\n".join(part for part in (entry.asked_by, short(entry.git_commit), level) if part)


@app.command("list")
def list_models(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the registered models and who their champion is."""
    models = _registry(workspace).models()
    if as_json:
        return screen.show_json({"models": [asdict(model) for model in models]})
    rows = [[m.name, m.champion or "-", m.previous or "-", m.challenger or "-", m.versions] for m in models]
    return screen.show_table("Models", ["name", "champion", "previous", "challenger", "versions"], rows)


@app.command()
def show(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show a model's champion, the one before it and the present challenger, with their holdout measures.

    Warns if the champion was moved by another hand: the next retraining writes that into the ledger.
    """
    from flows.stages.model_summary import describe_model
    from flows.stages.reporting.report_text import describe_measures

    summary = describe_model(_registry(workspace), name)
    if as_json:
        return screen.show_json(asdict(summary))
    if summary.moved_by_hand:
        screen.warn(summary.moved_by_hand)
    if summary.waiting:
        screen.note(f"Version {summary.waiting} is proven and waits: headstart models approve {name} --reason TEXT, or reject")
    rows = [
        [
            alias,
            v.version,
            v.variant_id,
            short(v.data_version),
            "\n".join(describe_measures(v.metrics)),
        ]
        for alias in ("champion", "previous", "challenger")
        if (v := getattr(summary, alias))
    ]
    return screen.show_table(name, ["alias", "version", "variant", "data", "holdout"], rows)


@app.command()
def history(name: Name, as_of: AsOf = None, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List every verdict on a model, oldest first: what was judged, whether it was promoted, and why.

    With --as-of: what was known then, who was champion, and how to go back to it.
    """
    from flows.registry import champion_at

    registry, time = _registry(workspace), None if as_of is None else as_of.replace(tzinfo=UTC).timestamp()
    entries = [entry for entry in registry.history(name) if time is None or entry.time <= time]
    made = None if time is None else champion_at(entries, time)
    if as_json:
        at = {} if time is None else {"as_of": time, "champion": made.champion_after if made else None}
        return screen.show_json({"name": name, **at, "history": [asdict(entry) | {"id": entry.id} for entry in entries]})
    if time is not None:
        champion = registry.current(name).get("champion")
        screen.note(_champion_then(name, time, made, champion.version if champion else None))
    elif moved := registry.moved_by_hand(name):
        screen.warn(moved.reasons[0])
    rows = [[_when(e.time), e.version or "none", _decision(e), "\n".join(e.reasons), _origin(e)] for e in entries]
    return screen.show_table(f"Ledger of {name}", ["time", "version", "verdict", "reasons", "asked by, commit, level"], rows)


def _champion_then(name: str, time: float, made: LedgerEntry | None, champion: str | None) -> str:
    if made is None:
        return f"{name} had no champion at {_when(time)}"
    then = made.champion_after
    words = f"At {_when(time)} version {then} was the champion of {name}, since {_when(made.time)}: {'; '.join(made.reasons)}"
    return words if then == champion else f"{words}\nTo go back to it: headstart models rollback {name} --to {then}"


@app.command()
def rollback(
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="An earlier champion, or, with a reason, one taken back; left out: the previous one."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, in words that the ledger keeps.")] = "",
    workspace: Workspace = None,
) -> None:
    """Make an earlier champion the champion again; the one taken back is never promoted again by itself.

    A rollback is undone by the version that it took back: headstart models rollback NAME --to VERSION --reason TEXT
    """
    registry = _registry(workspace)
    version = registry.rollback(name, to, reason.strip())
    screen.note(f"{name}: version {version.version} is the champion again")
    if (last := registry.history(name)[-1]).kind == "rollback":
        screen.note(
            f"Version {last.version} is taken back. To undo this: "
            f"headstart models rollback {name} --to {last.version} --reason TEXT"
        )


for verb in (delivery.pull, delivery.publish, delivery.card):
    app.command()(verb)


Waiting = Annotated[str | None, typer.Option("--version", metavar="VERSION", help="Left out: the latest that waits.")]
Why = Annotated[str, typer.Option(help="Why, in words that the ledger keeps.")]


@app.command()
def approve(name: Name, reason: Why, version: Waiting = None, workspace: Workspace = None) -> None:
    """Make a version that is proven, and waits for a person, the champion (plans with promotion.manual)."""
    approved = _registry(workspace).approve(name, version, reason)
    screen.note(f"{name}: version {approved.version} is the champion")


@app.command()
def reject(name: Name, reason: Why, version: Waiting = None, workspace: Workspace = None) -> None:
    """Let a version that is proven wait no more; it is never promoted by itself."""
    rejected = _registry(workspace).reject(name, version, reason)
    screen.note(f"{name}: version {rejected.version} is rejected")
