"""The first weights of backbones: found on this machine, or brought to it from a bucket or from a registered version."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows import s3
from flows.errors import AskedWrongly
from flows.local_copies import keep_here, keep_made
from flows.model_version import ModelVersion
from flows.places import Root, StoredFile, open_place
from flows.plan import Plan
from flows.records import Weights
from flows.registry import Registry
from flows.stages.checked_weights import checked_file
from flows.work_folder import bundle_name
from heads.errors import WeightsError


@dataclass(frozen=True)
class Start:
    """The registered version from whose backbone a training starts, in its registry, and the storage root."""

    registry: Registry
    root: Root
    version: ModelVersion

    @property
    def words(self) -> str:
        """The version in words."""
        return f"version {self.version.version} of {self.version.name}"

    def bring(self) -> Path:
        """The file of its backbone's weights on this machine."""
        digest = self.registry.bundle_digest(self.version) or f"{self.words} in {self.registry.address}"
        return keep_made(f"backbone of {digest}", self._save, ".pth")

    def _save(self, file: Path) -> None:
        from heads.bundle.backbone import save_backbone

        trained = open_place(self.root).within(bundle_name(self.version.work_key or "-"))
        if found := keep_here(trained):
            save_backbone(found, file)
            return
        with tempfile.TemporaryDirectory(prefix="headstart-champion-") as folder:
            self.registry.pull(self.version.name, self.version.version, Path(folder) / "bundle")
            save_backbone(Path(folder) / "bundle", file)


def find_start(registry: Registry, root: Root, name: str, key: str | None = None) -> Start:
    """The version of a model from which the retraining of this key starts: the one that was noted, else the champion now.

    Raises AskedWrongly if there is none.
    """
    noted = _note(root, key).read_json() if key else None
    version = registry.find(name, str(noted["version"])) if noted else registry.current(name).get("champion")
    if version is None:
        raise AskedWrongly(
            f"weights champion: {name!r} has no champion yet; write weights: imagenet (or none, or a file) until a first version "
            "was promoted"
        )
    return Start(registry, root, version)


def note_start(start: Start, key: str) -> None:
    """Note from which version the retraining of this key starts, so that one that is begun again starts from the same."""
    note = _note(start.root, key)
    if not note.exists():
        note.write_json({"version": start.version.version})


def _note(root: Root, key: str) -> StoredFile:
    return StoredFile(open_place(root).within("retrainings"), f"start-{key}.json")


def find_weights(plan: Plan, backbone: str, start: Start | None = None) -> Weights:
    """The first weights of one of a plan's backbones, checked: random, torchvision's, a file's, a bucket's or a version's.

    ImageNet's are downloaded once, and what lies elsewhere is brought to this machine once. `start` is the version that a
    plan with `weights: champion` starts from. Raises AskedWrongly if it is of another backbone, or if there is no such object
    in the bucket, WeightsError if a file does not fit the backbone.
    """
    named = plan.weights_of(backbone)
    if named == "none":
        return Weights("none")
    if named == "champion":
        assert start, "such a plan starts from a version"
        return _of_version(start, backbone)
    if named.startswith("s3://"):
        return _of_bucket(named, backbone)
    return checked_file(named, backbone)


def _of_bucket(address: str, backbone: str) -> Weights:
    from heads import backbones

    named = dict(zip(("Bucket", "Key"), s3.split(address), strict=True))
    with s3.in_our_words(f"weights {address!r}"):
        try:
            told = s3.connect_briefly().head_object(**named)
        except Exception as error:
            if not s3.is_missing(error):
                raise
            raise AskedWrongly(
                f"weights: there is no object {address!r}, or no such bucket; write the address of a file that was written by "
                f"torch.save(model.state_dict(), path), or imagenet, none or champion ({s3.SERVER})"
            ) from None

    def bring(file: Path) -> None:
        with s3.in_our_words(f"weights {address!r}"):
            s3.shared().download_file(**named, Filename=str(file))

    path = keep_made(f"{address} {told['ETag']}", bring, PurePosixPath(address).suffix)
    try:
        return Weights(backbones.check_weights(backbone, path), path, address)
    except WeightsError as error:
        raise WeightsError(f"weights {address!r}: {error}") from error


def _of_version(start: Start, backbone: str) -> Weights:
    from heads import backbones

    path = start.bring()
    try:
        return Weights(backbones.check_weights(backbone, path), path, start.words)
    except WeightsError as error:
        own = backbones.backbone_of(path)
        raise AskedWrongly(
            f"weights champion: {start.words} is of {own}, and not of {backbone}; write backbones: [{own}], or weights for each, "
            f"as in {{{own}: champion, {backbone}: imagenet}}"
        ) from error
