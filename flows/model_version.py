"""A version in the model registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flows import mlflow_tags


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry, with its tags and the aliases that point at it.

    What its tags say of its work is '' of a version that was not registered by Headstart.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: float

    @property
    def work_key(self) -> str:
        """The key of the work that trained it."""
        return self.tags.get(mlflow_tags.WORK_KEY, "")

    @property
    def variant_id(self) -> str:
        """The variant that it is of."""
        return self.tags.get(mlflow_tags.VARIANT_ID, "")

    @property
    def data_version(self) -> str:
        """The digest of the data version that it was trained on."""
        return self.tags.get(mlflow_tags.DATA_VERSION, "")

    @property
    def git_commit(self) -> str:
        """The workspace's commit when it was registered."""
        return self.tags.get(mlflow_tags.GIT_COMMIT, "")

    @property
    def run_id(self) -> str:
        """The MLflow run of its training."""
        return self.tags.get(mlflow_tags.RUN_ID, "")

    @property
    def bundle_digest(self) -> str:
        """The digest of its bundle; '' also of versions of earlier Headstarts, whose files `Catalog.bundle_digest` reads."""
        return self.tags.get(mlflow_tags.BUNDLE_DIGEST, "")

    @property
    def is_withdrawn(self) -> bool:
        """Whether a person took it back, so that it is never promoted again by itself."""
        return self.tags.get(mlflow_tags.WITHDRAWN) == "true"
