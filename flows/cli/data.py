"""`headstart data`: bring images or texts in, and show the data versions."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli import screen
from flows.cli.options import AsJson, Endpoint, Workspace, settings_of
from flows.errors import AskedWrongly
from flows.manifest import is_mask_target, is_tags_target
from flows.records import SPLITS, DataVersion
from flows.words import counted, short
from heads.tasks.bio import read_cell, spans_of
from heads.tasks.names import split_labels

app = typer.Typer(help="Bring images or texts in and look at the data versions.", no_args_is_help=True)


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="A folder, an s3://bucket/prefix, or the built-in `digits`.")],
    workspace: Workspace = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Also remove what the source no longer has.")] = False,
    max_removed_share: Annotated[
        float, typer.Option(min=0, max=1, help="With --mirror: refuse to remove more than this share of the samples; 1: never.")
    ] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Bring images or texts and their labels in, check every one, and make a data version.

    Understands class folders (`cat/*.jpg`, or `train/cat/*.jpg`; texts as `.txt`), a table `labels.csv` beside `images/`, or
    with a column `text`, pairs of images and masks, and tags of words in `.conll` files. Run it again to add what is new; bad
    samples are set aside and listed, never the whole night's loss. What the source holds beside is told; files in `data/` that
    no ingest brought are neither replaced nor removed.
    """
    from flows.stages import data

    settings = settings_of(workspace)
    with screen.progress_bars() as bars:
        bar = bars.add_task("samples", total=None, state="")
        ingested = data.ingest(
            settings,
            source,
            mirror=mirror,
            max_removed_share=max_removed_share,
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    for warning in ingested.tell_warnings():
        screen.warn(warning)
    if as_json:
        return screen.show_json(asdict(ingested))
    for line in ingested.tell_changes(source):
        screen.note(line)
    samples = counted(ingested.samples, "sample")
    return screen.note(f"data version {short(ingested.data_version)} holds {samples} (git {ingested.revision[:8]})")


@app.command()
def status(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show the present data version: its samples by target, class and split, and whether the working copy differs.

    Below are the copies on this machine of samples that it read from a remote in an object store, if there are any.
    """
    from flows import dataset, objects

    status = dataset.status(settings_of(workspace).workspace)
    text_lengths = _text_lengths(status.version)
    summary = {
        "data_version": status.version.digest,
        "revision": status.version.revision,
        "dirty": status.dirty,
        "samples": len(status.version.samples),
        "splits": status.splits,
        "classes": status.classes,
        "copies": asdict(copies := objects.cache_status()),
    } | text_lengths
    if as_json:
        return screen.show_json(summary)
    for target in status.version.targets:
        heading, counts = _count_cells(status.version, target)
        rows = [[name, *[counts[name, split] for split in SPLITS]] for name in dict.fromkeys(name for name, _ in counts)]
        screen.show_table(target, [heading, *SPLITS], rows)
    splits = ", ".join(f"{count} {split}" for split, count in status.splits.items())
    screen.note(f"data version {short(status.version.digest)} (git {status.version.revision[:8]}): {splits}")
    if copies.files:
        room = f"{screen.size(copies.bytes)} of at most {screen.size(copies.max_bytes)}"
        screen.note(f"copies from remotes in {copies.folder}: {counted(copies.files, 'file')}, {room}")
    if status.dirty:
        screen.warn(
            "data/ differs from this version: `headstart data ingest SOURCE` or the next retraining makes a version of it, "
            "`headstart data checkout HEAD` goes back, and both tell what is in their way"
        )
    for lengths in text_lengths.values():
        screen.note("texts: {least} to {most} bytes long, half of them up to {median}".format(**lengths))
    return None


@app.command()
def history(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the data versions, newest first."""
    from flows import dataset

    versions = dataset.history(settings_of(workspace).workspace)
    if as_json:
        return screen.show_json({"versions": [asdict(version) for version in versions]})
    rows = [[short(v.digest), v.revision[:8], v.date, sum(v.splits.values()) or "not here", v.message] for v in versions]
    return screen.show_table("Data versions", ["version", "git", "date", "samples", "message"], rows)


@app.command()
def checkout(
    revision: Annotated[
        str, typer.Argument(help="A git revision or a data version digest, as `headstart data history` lists them.")
    ],
    workspace: Workspace = None,
) -> None:
    """Put the working copy back to an earlier data version."""
    from flows import dataset

    version = dataset.checkout(settings_of(workspace).workspace, revision)
    screen.note(f"the working copy holds data version {short(version.digest)}")


@app.command()
def remote(
    address: Annotated[str | None, typer.Argument(help="s3://bucket/prefix, to set it; left out, it is shown.")] = None,
    endpoint: Endpoint = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show where data versions are pushed to, or set another place, to which those of the history are pushed first.

    Workers on other machines read samples from there. Credentials are never stored: they come from AWS_PROFILE,
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, here as on the workers.
    """
    from flows import dataset

    folder = dataset.open_workspace(settings_of(workspace).workspace)
    if address is None:
        if endpoint is not None:
            raise AskedWrongly(
                "--endpoint was given without an address; write `headstart data remote s3://bucket/prefix --endpoint URL`"
            )
        status = dataset.read_remote(folder)
    else:
        status = dataset.set_remote(folder, dataset.parse_remote(address, endpoint))
    if as_json:
        return screen.show_json(asdict(status))
    screen.note(f"remote {status.name}: {status.address}" + (f" at {status.endpoint}" if status.endpoint else ""))
    if status.pushed:
        screen.note(
            f"{counted(len(status.pushed), 'data version')} pushed, all of which Headstart finds there; plain `dvc` at a "
            "commit of before still asks the remote that is written in that commit"
        )
    if status.behind:
        screen.warn(
            f"{counted(len(status.behind), 'data version')} of the history ({', '.join(map(short, status.behind))}) "
            "not whole in this machine's DVC cache, so not pushed: run this where they are, with the same address"
        )
    return None


def _text_lengths(version: DataVersion) -> dict[str, dict[str, int]]:
    """The least, median and greatest length of texts in bytes, of those in the working copy; nothing of other samples."""
    if version.modality != "text":
        return {}
    lengths = sorted(file.stat().st_size for s in version.samples if (file := version.data / s.file).is_file())
    if not lengths:
        return {}
    return {"text_bytes": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]}}


def _count_cells(version: DataVersion, target: str) -> tuple[str, Counter[tuple[str, str]]]:
    """The heading of a target's cells (class, label or mask value), and the number of samples by (name, split)."""
    cells = [(cell, sample.split) for sample in version.samples if (cell := sample.labels[target]) is not None]
    if is_mask_target(version.samples, target):
        held = sorted((value, split) for file, split in cells if file in version.masks for value in version.masks[file].pixels)
        return "masks with value", Counter((str(value), split) for value, split in held)
    if is_tags_target(version.samples, target):
        spans = ((span.type, split) for cell, split in cells for span in spans_of(read_cell(cell)))
        return "spans of type", Counter(sorted(spans))
    if any("|" in cell for cell, _ in cells):
        return "label", Counter(sorted((label, split) for cell, split in cells for label in split_labels(cell)))
    return "class", Counter(sorted(cells))
