"""The origin of a retraining's runs (data version, commit, flow run), as tags and as MLflow's dataset input."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from flows import mlflow_tags

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


@dataclass(frozen=True)
class Origin:
    """The origin of a retraining's runs, which they carry as tags and as a dataset input."""

    data_version: str
    data_revision: str
    data_source: str
    git_commit: str | None = None
    flow_run_id: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The fields that are known, as a run's tags."""
        tags = {
            mlflow_tags.DATA_VERSION: self.data_version,
            mlflow_tags.DATA_REVISION: self.data_revision,
            mlflow_tags.DATA_SOURCE: self.data_source,
            mlflow_tags.GIT_COMMIT: self.git_commit,
            mlflow_tags.FLOW_RUN_ID: self.flow_run_id,
            mlflow_tags.SOURCE_COMMIT: self.git_commit,
        }
        return {name: value for name, value in tags.items() if value}


# The same for all runs of a retraining; and only the first call changes the process's filters of warnings.
@lru_cache(8)
def dataset_input(name: str, origin: Origin) -> DatasetInput:
    """The data that a run of the experiment `name` trained on, by digest and git revision."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns that two of its classes can read a folder
        source = resolve_dataset_source(origin.data_source)
    data = MetaDataset(source, name=name, digest=origin.data_version[:36])  # type: ignore[abstract]
    tags = {"mlflow.data.context": "training", "dvc.md5": origin.data_version, "git.rev": origin.data_revision}
    return DatasetInput(data._to_mlflow_entity(), [InputTag(key, value) for key, value in tags.items()])
