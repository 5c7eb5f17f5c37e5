"""Reading the registry: models, their versions, the aliases that point at these, and the bundles in them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from flows import pulling
from flows.errors import AskedWrongly, HeadstartError
from flows.mlflow_connection import asking, connect, every, is_missing
from flows.model_version import ModelVersion
from flows.registry.program import BUNDLE_FOLDER

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel
    from mlflow.tracking import MlflowClient

ALIASES = ("champion", "previous", "challenger")
CARDS = "cards"


@dataclass(frozen=True)
class ModelRow:
    """A registered model: the version that each alias points at, None if none, and the number of its versions."""

    name: str
    champion: str | None
    previous: str | None
    challenger: str | None
    versions: int


class Catalog:
    """The registered models at an MLflow address, to read and pull.

    Raises AskedWrongly on an unknown name, version or alias, Unreachable if a server does not answer, and HeadstartError on
    any other failure of MLflow.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @cached_property
    def _client(self) -> MlflowClient:
        return connect(self.address)

    def _aliases(self, name: str) -> dict[str, str]:
        """The versions by alias; read from the model, since MLflow's search of versions leaves the aliases out."""
        model = self._registered(name)
        return {alias: str(version) for alias, version in model.aliases.items()} if model else {}

    def _registered(self, name: str) -> RegisteredModel | None:
        try:
            return self._client.get_registered_model(name)
        except Exception as error:
            if is_missing(error):
                return None
            raise

    @asking
    def models(self) -> list[ModelRow]:
        """Every registered model, by name."""
        rows = []
        for name in sorted(model.name for model in every(self._client.search_registered_models)):
            champion, previous, challenger = map(self._aliases(name).get, ALIASES)
            rows.append(ModelRow(name, champion, previous, challenger, len(self.versions(name))))
        return rows

    @asking
    def versions(self, name: str) -> list[ModelVersion]:
        """The versions of a model, oldest first; none if the name is unknown."""
        _refuse_no_name(name)
        aliases = self._aliases(name)
        made = [
            ModelVersion(
                name=name,
                version=str(entry.version),
                aliases=tuple(alias for alias in aliases if aliases[alias] == str(entry.version)),
                tags=dict(entry.tags),
                created=entry.creation_timestamp / 1000,
            )
            for entry in every(self._client.search_model_versions, f"name = '{name}'")
        ]
        return sorted(made, key=lambda version: int(version.version))

    def versions_by_number(self, name: str) -> dict[str, ModelVersion]:
        """The versions of a model by their numbers, oldest first; none if the name is unknown."""
        return {version.version: version for version in self.versions(name)}

    def current(self, name: str) -> dict[str, ModelVersion]:
        """The version that each alias points at; empty if the name is unknown."""
        return {alias: version for version in self.versions(name) for alias in version.aliases}

    def find(self, name: str, which: str) -> ModelVersion:
        """The version with this number or alias."""
        versions = self.versions(name)
        if not versions:
            known = ", ".join(model.name for model in self.models()) or "none yet"
            raise AskedWrongly(f"no model is registered as {name!r}; registered: {known}")
        for version in versions:
            if which == version.version or which in version.aliases:
                return version
        aliases = ", ".join(sorted(alias for version in versions for alias in version.aliases)) or "no alias"
        raise AskedWrongly(f"{name} has no version or alias {which!r}; there are versions {_ranges(versions)} and {aliases}")

    @asking
    def pull(self, name: str, which: str, dest: Path) -> ModelVersion:
        """Put the bundle of the version with this number or alias into the folder `dest`, checked against its digests.

        A folder that holds a bundle of this model, unchanged since it was pulled, is exchanged for the new one in one step; a
        pull that was cut short goes on. Raises InTheWay if `dest` holds anything else, BundleError if the download does not
        match its digests.
        """
        version = self.find(name, which)

        def is_ours(digest: str) -> bool:
            return any(digest == self.bundle_digest(known) for known in reversed(self.versions(name)))

        pulling.bring(self._files(version), dest, name=name, digest=self.bundle_digest(version), is_ours=is_ours)
        return version

    @asking
    def card(self, name: str, which: str) -> str:
        """The card, in Markdown, of the version with this number or alias; the bundle's own if none was written of it.

        Earlier Headstarts wrote none.
        """
        from mlflow.artifacts import download_artifacts

        version = self.find(name, which)
        if card_file(version) not in self._run_files(version, CARDS):
            return self._read(version, "card.md").decode()
        with tempfile.TemporaryDirectory(prefix="headstart-card-") as made:
            where = f"runs:/{version.run_id}/{card_file(version)}"
            return Path(download_artifacts(where, dst_path=made, tracking_uri=self.address)).read_text(encoding="utf-8")

    @asking
    def pictures(self, version: ModelVersion) -> tuple[str, ...]:
        """The names of the pictures in the version's run."""
        return tuple(file.rpartition("/")[2] for file in self._run_files(version, "pictures"))

    def _run_files(self, version: ModelVersion, folder: str) -> list[str]:
        try:
            return sorted(file.path for file in self._client.list_artifacts(version.run_id, folder)) if version.run_id else []
        except Exception as error:
            if is_missing(error):  # the run was deleted
                return []
            raise

    @asking
    def bundle_digest(self, version: ModelVersion) -> str | None:
        """The digest of a version's bundle: its tag, or, of earlier Headstarts, its SHA256SUMS hashed; None if that is lost."""
        if version.bundle_digest:
            return version.bundle_digest
        try:
            return hashlib.sha256(self._read(version, "SHA256SUMS")).hexdigest()
        except Exception:
            return None

    def _files(self, version: ModelVersion) -> pulling.Files:
        """The files of a version's bundle."""
        source = self._client.get_model_version_download_uri(version.name, version.version).rstrip("/")
        if not source.startswith(("/", "file:")):
            return _Downloads(f"{source}/{BUNDLE_FOLDER}", self.address)
        place = Path(unquote(urlsplit(source).path)) / BUNDLE_FOLDER
        if not place.is_dir():
            raise HeadstartError(
                f"the files of {version.name} version {version.version} are not where MLflow at {self.address} says, in "
                f"{place.parent}. Put that folder back; a storage that moved as a whole is found by itself: name it by "
                "HEADSTART_STORAGE_ROOT or --workspace, and start `headstart up` anew where it runs"
            )
        return pulling.Folder(place)

    def _read(self, version: ModelVersion, name: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="headstart-file-") as made:
            file = Path(made) / "file"
            self._files(version).fetch(name, file)
            return file.read_bytes()


@dataclass(frozen=True)
class _Downloads:
    """The files of a bundle at a server of MLflow's, or in a store that MLflow reads: each is fetched whole."""

    place: str
    address: str

    def fetch(self, name: str, file: Path) -> None:
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory(dir=file.parent) as made:
            os.replace(download_artifacts(f"{self.place}/{name}", dst_path=made, tracking_uri=self.address), file)


def card_file(version: ModelVersion) -> str:
    """The path of a version's card among the files of its run."""
    return f"{CARDS}/{version.name}-{version.version}.md"


def _ranges(versions: list[ModelVersion]) -> str:
    return f"{versions[0].version} to {versions[-1].version}" if len(versions) > 1 else versions[0].version


def _refuse_no_name(name: str) -> None:
    if not name or any(sign in name for sign in "'\\/:"):
        raise AskedWrongly(f"{name!r} is no model's name: it has letters, digits, '-' and '_'; write NAME@champion or NAME@3")
