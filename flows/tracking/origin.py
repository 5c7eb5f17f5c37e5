"""The origin of a retraining's runs (data version, commit, flow run), as tags and as MLflow's dataset input."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

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
        """The fields that are known, each as `headstart.<field>`."""
        tags = {f"headstart.{name}": value for name, value in asdict(self).items() if value}
        return tags | ({"mlflow.source.git.commit": self.git_commit} if self.git_commit else {})


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
