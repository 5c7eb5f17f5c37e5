"""Where the bytes of a data version's samples and masks are read: from this machine's files, else from the remote."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

from flows import objects
from flows.errors import AskedWrongly
from flows.records import DataVersion, Remote, Sample
from flows.workspace import find, md5_of


def locate(version: DataVersion, sample: Sample) -> Path | bytes:
    """A file that holds the sample's bytes: in the DVC cache, on a remote that is a folder, or else in the working copy.

    On a machine that has none of them it is fetched from a remote in an object store, as a file of this node's copies, or as
    the bytes themselves if there is no room for one. Raises AskedWrongly if it is nowhere, or if its pixels are read differently
    today than when the version was made.
    """
    place = _locate(version, version.modality, sample.file, sample.digest)
    # Texts have one recipe.
    if version.modality == "image":
        from heads.data.recipes import image_recipe

        _check_recipe("image", sample.file, sample.recipe, image_recipe(place))
    return place


def locate_mask(version: DataVersion, file: str) -> Path | bytes:
    """A file that holds the bytes of a mask, or the bytes; it is given by its name in the data folder, and found as by `locate`.

    Raises AskedWrongly if it is nowhere, if the version has no such mask, or if its values are read differently today than
    when the version was made.
    """
    from heads.data.recipes import mask_recipe

    if file not in version.masks:
        raise AskedWrongly(f"data version {version.digest} knows no mask {file}; ingest again with the source it came from")
    place = _locate(version, "mask", file, version.masks[file].digest)
    _check_recipe("mask", file, version.masks[file].recipe, mask_recipe(place))
    return place


def files_of(version: DataVersion, samples: Iterable[Sample]) -> Iterator[tuple[str, str]]:
    """The file names and digests of samples and of their masks."""
    for sample in samples:
        yield sample.file, sample.digest
        for cell in sample.labels.values():
            if cell is not None and cell in version.masks:
                yield cell, version.masks[cell].digest


def prefetch(version: DataVersion, files: Iterable[tuple[str, str]], reader: Hashable = None) -> None:
    """Fetch files, given by name in the data folder and digest, ahead of a reader, who reads them in this order.

    What the same reader was to read before is given up. Does nothing where the workspace can be reached.
    """
    if version.remote is None or find(version.digest, version.objects) is not None:
        return
    has_copy = version.data.is_dir()
    away = [
        digest
        for file, digest in files
        if find(digest, version.objects) is None and not (has_copy and (version.data / file).is_file())
    ]
    if away:
        _node(version, version.remote).prefetch(reader, away)


def check_turned(version: DataVersion) -> None:
    """Check that every TIFF of the version that is on this machine is still read by the recipe that the version states.

    Raises AskedWrongly if one is not: what was computed from it before is of other pixels.
    """
    from heads.data.recipes import image_recipe

    for sample in version.samples:
        if sample.recipe == 1 and sample.file.lower().endswith((".tif", ".tiff")):
            place = find(sample.digest, version.objects)
            if place is not None:
                _check_recipe("image", sample.file, sample.recipe, image_recipe(place))


def _check_recipe(kind: str, file: str, stated: int, needed: int) -> None:
    if needed > stated:
        raise AskedWrongly(
            f"{kind} {file} was read wrongly when its data version was made (a TIFF turned twice, a transparent grey of 16 bits, "
            "or a mask of few bits), and is read right now: run `headstart data ingest SOURCE` again, which makes a new version"
        )


def _node(version: DataVersion, remote: Remote) -> objects.NodeObjects:
    """This process's way to the version's remote, where its copies stay until this process ends."""
    node, samples = objects.node_of(remote), version.samples
    # Of a version there may be parts, as threads score them. Looked at for each sample, so its digests are not gone through.
    name = version.digest, len(samples), len(version.masks), samples[0].digest if samples else ""
    node.pin(name, lambda: [*(sample.digest for sample in samples), *(mask.digest for mask in version.masks.values())])
    return node


def _locate(version: DataVersion, kind: str, file: str, digest: str) -> Path | bytes:
    place = find(digest, version.objects)
    if place is not None:
        return place
    copy = version.data / file
    if copy.is_file() and md5_of(copy) == digest:
        return copy
    if version.remote is not None:
        try:
            return _node(version, version.remote).take(digest)
        except objects.Missing as error:
            raise AskedWrongly(
                f"{kind} {file} of data version {version.digest} is not on its remote: there is no {error}; run `dvc push` in "
                "the workspace, or `headstart data ingest SOURCE` with the source it came from"
            ) from None
        except objects.Damaged as error:
            raise AskedWrongly(
                f"{kind} {file} of data version {version.digest} is damaged on its remote: {error}; remove that object and run "
                "`dvc push` in the workspace"
            ) from None
    raise AskedWrongly(
        f"{kind} {file} (md5 {digest}) of data version {version.digest} is neither in the DVC cache, "
        f"nor on a remote that is a folder, nor in {version.data}; run `headstart data checkout HEAD`, or ingest again"
    )
