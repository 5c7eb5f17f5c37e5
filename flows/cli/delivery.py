"""The verbs of `headstart models` that hand a version on: pull, publish, card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import screen
from flows.cli.options import AsJson, Workspace, settings_of

Model = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="NAME@champion, NAME@previous or NAME@3.")]


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME@ALIAS",
            help="NAME@champion or NAME@3; or where it is published: s3://bucket/prefix, ./folder, ./file-of-signed-addresses.",
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DEST", help="The folder to make, or one that holds an earlier pull of this model.")
    ],
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="Go on, and follow the alias: ask again every so often.")
    ] = None,
    workspace: Workspace = None,
) -> None:
    """Download a model's bundle, checked against its digests; an earlier one, just as it was pulled, gives way to it.

    Readers find the earlier bundle or the newer, whole; a pull that was cut short goes on. With --watch the folder follows the
    alias until Ctrl-C or SIGTERM, and keeps its bundle while the registry does not answer.

    Use it where only torch, torchvision, safetensors and pydantic are installed: heads.bundle.load(DEST).predict([...])
    """
    from flows.stages import delivery

    origin = delivery.open_origin(settings_of(workspace), model)
    if watch is None:
        offer = origin.pull_if_new(folder, None)
        return screen.note(f"{folder} holds {offer.name} version {offer.version}")
    try:
        return delivery.follow(origin, folder, watch, screen.note_whole)
    except KeyboardInterrupt:
        return screen.note(f"stopped; {folder} stays as it is")


def publish(
    model: Model,
    address: Annotated[str, typer.Argument(metavar="s3://BUCKET/PREFIX", help="Where it is published; or a folder.")],
    expires: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS", help="Also print addresses by which anyone may pull it for so many seconds: keep them in a file."
        ),
    ] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Upload a version's bundle under its digest, then a pointer to it, for consumers that do not reach MLflow.

    They pull it with: headstart models pull s3://BUCKET/PREFIX DEST. Those without credentials get a file of the lines that
    --expires prints, and name its path: headstart models pull ./FILE DEST. Run again, it uploads nothing; cut short, the version
    that was published before stays so.
    """
    from flows import publishing
    from flows.stages import delivery

    settings = settings_of(workspace)
    if expires is not None:
        publishing.check_signing(address, expires)
    pointer, is_new = delivery.publish(settings, model, address)
    signed = {} if expires is None else publishing.sign(address, pointer, expires)
    if as_json:
        return screen.show_json({"is_new": is_new, **asdict(pointer)} | ({"addresses": dict(signed)} if signed else {}))
    screen.note(f"{address} {'publishes' if is_new else 'publishes already'} {pointer.name} version {pointer.version}")
    for file, signed_address in signed.items():
        screen.out.print(f"{file} {signed_address}", markup=False, soft_wrap=True)
    return None


def card(
    model: Model,
    raw: Annotated[bool, typer.Option("--raw", help="The Markdown as it is written.")] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Print a version's card: verdict, data, measures with intervals, reliability, how to load it, licence of the weights."""
    from rich.markdown import Markdown

    from flows.stages.session import open_registry

    name, _, which = model.partition("@")
    text = open_registry(settings_of(workspace)).card(name, which or "champion")
    if as_json:
        return screen.show_json({"name": name, "which": which or "champion", "card": text})
    return screen.out.print(text, markup=False, soft_wrap=True) if raw else screen.out.print(Markdown(text))
