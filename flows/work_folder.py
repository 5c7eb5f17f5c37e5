"""The folder of a work: the names of all its files, and their content as values.

`work/<key>/` under the storage root holds `progress.json` and `training.pt` while the work trains; at its end `bundle/`,
`examples/` and then `result.json`, or else `failure.json`. A screened work also has `probe.json` and `probe.pt`, of its probe
phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.errors import AskedWrongly
from flows.files import read_value
from flows.local_copies import keep_here
from flows.places import Folder, Place, Root, StoredFile, open_place
from flows.records import TrainedVariant, Work
from flows.work_records import EpochRecord, MaskExample, WorkFailure, WorkResult, read_epochs, result_json, written
from heads.atomic_files import sweep

EXAMPLES = "examples"
BUNDLE, CHECKPOINT, PROBE_CHECKPOINT = "bundle", "training.pt", "probe.pt"
PROGRESS, RESULT, FAILURE, PROBE = "progress.json", "result.json", "failure.json", "probe.json"


@dataclass(frozen=True)
class WorkFolder:
    """The folder of one work. Its JSON files appear whole, and only this class reads and writes them."""

    place: Place

    @classmethod
    def of(cls, storage: Root, key: str) -> WorkFolder:
        """The folder of the work `key` under a storage root."""
        return cls(works_root(storage).within(key))

    def _file(self, name: str) -> StoredFile:
        return StoredFile(self.place, name)

    def fetch_bundle(self) -> Path | None:
        """The trained model's bundle as a folder of this machine, None if there is none."""
        return keep_here(self.place.within(BUNDLE))

    def filling(self) -> AbstractContextManager[Path]:
        """A folder of this machine for the block, with the same names as the work's; all that is written into it is stored."""
        return self.place.filling()

    def fetch_checkpoint(self) -> Path | None:
        """The checkpoint from which a work that trains side by side with others goes on, None if there is none."""
        return self.place.fetch(CHECKPOINT)

    def checkpoint_written_at(self) -> float | None:
        """When that checkpoint was written, in seconds since 1970, None if there is none."""
        fact = self.place.facts().get(CHECKPOINT)
        return fact.written_at if fact else None

    def fetch_probe_checkpoint(self) -> Path | None:
        """The checkpoint at the end of its probe phase, None if there is none."""
        return self.place.fetch(PROBE_CHECKPOINT)

    def is_finished(self) -> bool:
        """Whether there is a result, or a failure that another try would only repeat; that file is written last."""
        return not self.place.facts().keys().isdisjoint((RESULT, FAILURE))

    def stamp(self) -> str:
        """A text that differs whenever its progress, result or failure does; '' if the work has not begun."""
        facts = self.place.facts()
        return " ".join(f"{name} {facts[name].stamp}" for name in (PROGRESS, RESULT, FAILURE) if name in facts)

    def finished_at(self) -> float:
        """When its result was written, in seconds since 1970; 0 if there is none."""
        fact = self.place.facts().get(RESULT)
        return fact.written_at if fact else 0.0

    def read_progress(self) -> tuple[EpochRecord, ...]:
        """The epochs so far, the first one first."""
        return read_epochs(self._file(PROGRESS).read_json({"epochs": []})["epochs"])

    def add_progress(self, work_key: str, epochs: Sequence[EpochRecord]) -> None:
        """Add the epochs that are not in the file yet."""
        before = self.read_progress()
        # An epoch repeated after a crash gives the same record, so readers of the file never see it shrink.
        if new := [epoch for epoch in epochs if epoch.epoch >= len(before)]:
            self._file(PROGRESS).write_json({"work_key": work_key, "epochs": [written(epoch) for epoch in (*before, *new)]})

    def read_result(self) -> WorkResult | None:
        """The result, None if there is none."""
        content = self._file(RESULT).read_json()
        if content is None:
            return None
        examples = content.get("examples")
        typed = {
            "epochs": read_epochs(content["epochs"]),
            "examples": None if examples is None else tuple(read_value(MaskExample, row) for row in examples),
        }
        return read_value(WorkResult, content | typed)

    def write_result(self, result: WorkResult) -> None:
        """Write the result: the mark that the work is finished."""
        self._file(RESULT).write_json(result_json(result))

    def read_failure(self) -> WorkFailure | None:
        """Why the work failed for good, None if it did not."""
        content = self._file(FAILURE).read_json()
        return content and read_value(WorkFailure, content | {"epochs": read_epochs(content["epochs"])})

    def write_failure(self, failure: WorkFailure) -> None:
        """Write why the work failed for good: the mark that no other try is made."""
        content = asdict(failure) | {"epochs": [written(epoch) for epoch in failure.epochs]}
        self._file(FAILURE).write_json(content)

    def read_probe(self) -> Mapping[str, float] | None:
        """The measures of the best epoch of its probe phase, None if the phase is not over."""
        content = self._file(PROBE).read_json()
        metrics: Mapping[str, float] | None = content and content["metrics"]
        return metrics

    def write_probe(self, metrics: Mapping[str, float]) -> None:
        """Write the measures of the best epoch of the probe phase: the mark that the phase is over."""
        self._file(PROBE).write_json({"metrics": metrics})

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint, and all that killed writers left half-written in the folder."""
        self._drop(CHECKPOINT)

    def drop_probe_checkpoint(self) -> None:
        """Remove the checkpoint of the probe phase likewise; `probe.json` stays, since rivals are ranked by it."""
        self._drop(PROBE_CHECKPOINT)

    def _drop(self, name: str) -> None:
        # Writers of earlier versions left files.
        self.place.remove(name, *(left for left in self.place.facts() if left.startswith(f".{name}.")))
        if isinstance(self.place, Folder):
            sweep(self.place.path)


def works_root(storage: Root) -> Place:
    """The place of all works under a storage root."""
    return open_place(storage).within("work")


def bundle_name(key: str) -> str:
    """The name under a storage root of the place of a work's bundle."""
    return f"work/{key}/{BUNDLE}"


def read_trained(storage: Root, work: Work, *, reused: bool) -> TrainedVariant:
    """A finished work as a value.

    Raises FileNotFoundError if it has no result, AskedWrongly if that has measures of the holdout: variants would be ranked
    by what only a verdict may see.
    """
    folder = WorkFolder.of(storage, work.key)
    result = folder.read_result()
    if result is None:
        raise FileNotFoundError(f"the work {work.key} has no result in {folder.place.address}")
    if seen := sorted(name for name in result.metrics if name.startswith("test/")):
        raise AskedWrongly(
            f"{folder.place.address}/{RESULT}: a training has measures of the holdout ({', '.join(seen)}), and may have only "
            f"those of train/ and val/; remove {folder.place.address}, so that the next retraining trains it again"
        )
    own = {"key": work.key, "variant": work.variant, "reused": reused}
    return read_value(TrainedVariant, {name: value for name, value in vars(result).items() if value is not None} | own)
