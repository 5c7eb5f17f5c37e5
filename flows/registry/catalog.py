"""What is registered: models, their versions, the aliases that point at them, and the bundles they hold."""

from __future__ import annotations

import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import AskedWrongly
from flows.records import ModelVersion
from flows.registry.program import BUNDLE_FOLDER
from flows.tracking_server import asking, connect, is_missing

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ALIASES = ("champion", "previous", "challenger")


class Catalog:
    """The registered models at an MLflow address, for looking and pulling.

    Raises AskedWrongly on a name, version or alias that is not there, Unreachable when a server does not answer,
    and HeadstartError on any other failure of MLflow.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @cached_property
    def _client(self) -> MlflowClient:
        return connect(self.address)

    def _aliases(self, name: str) -> dict[str, str]:
        """Version by alias; MLflow's search of versions leaves the aliases out, so they are read from the model."""
        try:
            found = self._client.get_registered_model(name).aliases
        except Exception as error:
            if is_missing(error):
                return {}
            raise
        return {alias: str(version) for alias, version in found.items()}

    @asking
    def models(self) -> list[dict[str, Any]]:
        """Every registered model: its name, the version each alias points at (or None), and its number of versions."""
        names: list[str] = []
        token = None
        while True:
            page = self._client.search_registered_models(page_token=token)
            names += [found.name for found in page]
            token = page.token
            if not token:
                break
        told = []
        for name in sorted(names):
            aliases = self._aliases(name)
            told.append({"name": name, **{a: aliases.get(a) for a in ALIASES}, "versions": len(self.versions(name))})
        return told

    @asking
    def versions(self, name: str) -> list[ModelVersion]:
        """The versions of a model, oldest first; none where the name is unknown."""
        _refuse_no_name(name)
        aliases = self._aliases(name)
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                break
        made = [
            ModelVersion(
                name=name,
                version=str(entry.version),
                aliases=tuple(alias for alias in aliases if aliases[alias] == str(entry.version)),
                tags=dict(entry.tags),
                created=entry.creation_timestamp / 1000,
            )
            for entry in found
        ]
        return sorted(made, key=lambda version: int(version.version))

    def current(self, name: str) -> dict[str, ModelVersion]:
        """The version that each alias points at; none where the name is unknown."""
        return {alias: version for version in self.versions(name) for alias in version.aliases}

    def find(self, name: str, which: str) -> ModelVersion:
        """The version of that number or alias."""
        versions = self.versions(name)
        if not versions:
            known = ", ".join(model["name"] for model in self.models()) or "none yet"
            raise AskedWrongly(f"no model is registered as {name!r}; registered: {known}")
        for version in versions:
            if which == version.version or which in version.aliases:
                return version
        aliases = ", ".join(sorted(alias for version in versions for alias in version.aliases)) or "no alias"
        raise AskedWrongly(f"{name} has no version or alias {which!r}; there are versions {_ranges(versions)} and {aliases}")

    @asking
    def pull(self, name: str, which: str, dest: Path) -> ModelVersion:
        """The version of that number or alias, with its bundle, checked against its digests, in the folder `dest`.

        Raises AskedWrongly when `dest` holds something, BundleError when what came does not match its digests.
        """
        from heads import bundle as bundles

        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise AskedWrongly(f"{dest} is in the way: name a folder that does not exist, or an empty one")
        version = self.find(name, which)
        dest.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.absolute().parent) as made:
            arrived = self._download(version, Path(made))
            bundles.verify(arrived)
            os.replace(arrived, dest)
        return version

    def _download(self, version: ModelVersion, folder: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        source = self._client.get_model_version_download_uri(version.name, version.version).rstrip("/")
        return Path(download_artifacts(f"{source}/{BUNDLE_FOLDER}", dst_path=str(folder), tracking_uri=self.address))


def _ranges(versions: list[ModelVersion]) -> str:
    return f"{versions[0].version} to {versions[-1].version}" if len(versions) > 1 else versions[0].version


def _refuse_no_name(name: str) -> None:
    if not name or any(sign in name for sign in "'\\/:"):
        raise AskedWrongly(f"{name!r} is no model's name: it has letters, digits, '-' and '_'; write NAME@champion or NAME@3")
