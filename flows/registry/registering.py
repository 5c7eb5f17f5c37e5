"""Registering a work's bundle as a version of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flows import mlflow_tags
from flows.mlflow_connection import asking
from flows.model_version import ModelVersion
from flows.registry import program, telling
from flows.registry.catalog import Catalog


class Registering(Catalog):
    """A catalog that takes new versions. Raises as Catalog does."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._exports: dict[Path, program.Export] = {}

    @asking
    def prepare(self, name: str, bundle: Path, work_key: str) -> None:
        """Begin to make what `register` uploads of a work's bundle, in a thread, unless the work has its version."""
        if all(version.work_key != work_key for version in self.versions(name)):
            self._exports[bundle] = program.Export(bundle)

    @asking
    def register(
        self,
        name: str,
        *,
        bundle: Path,
        run_id: str,
        work_key: str,
        variant_id: str,
        data_version: str,
        git_commit: str,
        metrics: Mapping[str, float],
    ) -> ModelVersion:
        """Register a work's bundle as a version, or find the one registered before; a new one appears whole or not at all."""
        for version in self.versions(name):
            if version.work_key == work_key:
                return version
        marks = {
            mlflow_tags.WORK_KEY: work_key,
            mlflow_tags.VARIANT_ID: variant_id,
            mlflow_tags.DATA_VERSION: data_version,
            mlflow_tags.RUN_ID: run_id,
            mlflow_tags.GIT_COMMIT: git_commit,
        }
        model_id = self._logged_model(name, bundle, run_id, marks)
        try:
            self._client.create_registered_model(name, description=telling.UNPROMOTED)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = marks | {mlflow_tags.HOLDOUT: telling.holdout_tag(metrics), mlflow_tags.BUNDLE_DIGEST: _bundle_digest(bundle)}
        description = telling.describe_version((bundle / "card.md").read_text(encoding="utf-8"), metrics)
        made = self._client.create_model_version(
            name, source=f"models:/{model_id}", run_id=run_id, tags=tags, description=description, model_id=model_id
        )
        return self.find(name, str(made.version))

    @asking
    def tell_holdout(self, version: ModelVersion, metrics: Mapping[str, float]) -> None:
        """Put a version's measures on the holdout in place of those that it was registered with."""
        self._client.set_model_version_tag(version.name, version.version, mlflow_tags.HOLDOUT, telling.holdout_tag(metrics))

    def _logged_model(self, name: str, bundle: Path, run_id: str, marks: Mapping[str, str]) -> str:
        """The id of the work's logged model in MLflow: one that an earlier try finished, or a new one."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        experiment = self._client.get_run(run_id).info.experiment_id
        known = self._client.search_logged_models(
            [experiment], f"tags.`{mlflow_tags.WORK_KEY}` = '{marks[mlflow_tags.WORK_KEY]}'"
        )
        for model in known:
            if model.status == LoggedModelStatus.READY:
                return str(model.model_id)
        model = self._client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=dict(marks))
        export = self._exports.pop(bundle, None) or program.Export(bundle)
        with export.finished(run_id=run_id, model_id=model.model_id, facts=marks) as folder:
            self._client.log_model_artifacts(model.model_id, str(folder))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return str(model.model_id)


def _bundle_digest(bundle: Path) -> str:
    from heads import bundle as bundles

    return bundles.digest(bundle)
