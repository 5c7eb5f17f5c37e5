"""The folder of a job: the names of all its files, and their content as values.

`<storage>/jobs/<kind>-<key>/` holds the job (`job.json`, `samples.json`), the notes that its driver and the members of its
worker group make on the way, and at the end `outcome.json` or `error.json`.
"""

from __future__ import annotations

import json
import os
import platform
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.errors import ASKED_WRONGLY, AskedWrongly, HeadstartError
from flows.files import read_json, write_json

# The files in a checkpoint of the whole worker group, which is a folder that Ray keeps.
CHECKPOINT_STATE, CHECKPOINT_NOTE = "state.pt", "work.json"
JOB, SAMPLES, OUTCOME, ERROR = "job.json", "samples.json", "outcome.json", "error.json"
TODO, SPAN, TO_STORE, SHARES = "todo.json", "span.json", "features.json", "shares.json"
DRIVERS, GROUPS, LOSSES, NODES = "drivers.json", "groups.json", "losses.json", "nodes.json"
STORED = "stored-*.json"
MAX_MESSAGE_CHARS = 6000


@dataclass(frozen=True)
class JobOutcome:
    """The outcome of a job.

    A training has the keys of the works that it trained and of those found done, the number of images forwarded through
    variants and trunks, the seconds from its first batch to its last, and the multiply-adds of filling the feature store. A
    scoring has the file of each bundle's score table, by the bundle's path.
    """

    trained: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    num_forwarded: int = 0
    seconds: float = 0.0
    flops_stored: int = 0
    scores: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Span:
    """When a job's first batch began and its latest one ended, in seconds since 1970."""

    first: float
    last: float


@dataclass(frozen=True)
class GroupStart:
    """The start of a worker group: when, in seconds since 1970, the job's number of drivers up to then, and its size."""

    at: float
    drivers: int
    # Missing in the notes of earlier versions.
    num_workers: int | None = None


@dataclass(frozen=True)
class CheckpointNote:
    """The note in a checkpoint of the whole group: the work it is of, that work's last epoch, and when it was made."""

    work_key: str
    # Missing in checkpoints of earlier versions.
    epoch: int | None = None
    at: float | None = None


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job. All of its files appear whole, and each is read and written here alone."""

    path: Path

    @property
    def job_file(self) -> Path:
        """The file that the program is started with; written after the samples, so that it stands for the whole job."""
        return self.path / JOB

    def read_job(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The job as JSON, and the tables of its samples and masks; `flows.job.job` gives them their meaning."""
        return json.loads(self.job_file.read_text()), json.loads((self.path / SAMPLES).read_text())

    def write_job(self, fields: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
        """Write what `read_job` reads."""
        write_json(self.path / SAMPLES, tables)
        write_json(self.job_file, fields)

    def forget(self) -> None:
        """Remove the notes and the outcome of an earlier job of the same key, before a new one begins."""
        names = (OUTCOME, ERROR, TODO, SPAN, TO_STORE, SHARES, DRIVERS, GROUPS, LOSSES, NODES)
        for stale in (*(self.path / name for name in names), *self.path.glob(STORED)):
            stale.unlink(missing_ok=True)

    def read_end(self) -> JobOutcome | None:
        """The outcome of the job, None before its end. If it failed, raises AskedWrongly or HeadstartError with its message."""
        if (outcome := read_json(self.path / OUTCOME)) is not None:
            return _outcome(outcome, self.flops_stored())
        if (error := read_json(self.path / ERROR)) is not None:
            raise (AskedWrongly if error["asked_wrongly"] else HeadstartError)(error["message"])
        return None

    def write_outcome(self, outcome: JobOutcome) -> None:
        """Write the outcome of the job."""
        names = ("trained", "reused", "num_forwarded", "seconds") if outcome.scores is None else ("scores",)
        write_json(self.path / OUTCOME, {name: getattr(outcome, name) for name in names})

    def has_failed(self) -> bool:
        """Whether the job failed for good."""
        return (self.path / ERROR).exists()

    def write_error(self, error: Exception) -> None:
        """Write an error's message for people, and whether the request was at fault; the first error stands."""
        asked_wrongly = isinstance(error, ASKED_WRONGLY)
        message = str(error) if asked_wrongly else "".join(traceback.format_exception(error))[-MAX_MESSAGE_CHARS:]
        if not self.has_failed():
            write_json(self.path / ERROR, {"asked_wrongly": asked_wrongly, "message": message})

    def read_todo(self) -> tuple[str, ...] | None:
        """The keys of the works that were left when the job began, None before it began."""
        keys = read_json(self.path / TODO)
        return None if keys is None else tuple(keys)

    def write_todo(self, keys: Sequence[str]) -> None:
        """Write the keys of the works that are left as the job begins."""
        write_json(self.path / TODO, list(keys))

    def read_span(self) -> Span | None:
        """The time from the first batch to the latest, None before the first."""
        content = read_json(self.path / SPAN)
        return content and Span(**content)

    def mark_span(self, now: float) -> None:
        """Note that a batch begins or ended now; written again and again, so that it outlives any process."""
        before = self.read_span()
        write_json(self.path / SPAN, asdict(Span(before.first if before else now, now)))

    def write_to_store(self, total: int) -> None:
        """Write the number of samples that the job brings into the feature store in all."""
        write_json(self.path / TO_STORE, {"total": total})

    def write_stored(self, num_samples: int, flops: float) -> None:
        """Write the number of samples that this process has stored in the feature store, and their multiply-adds."""
        name = STORED.replace("*", f"{platform.node()}-{os.getpid()}")
        write_json(self.path / name, {"num_samples": num_samples, "flops": flops})

    def num_stored(self) -> tuple[int, int]:
        """How many samples the job's members have stored in the feature store, and how many there are to store in all."""
        done: int = sum(self._stored("num_samples"))
        total: int = read_json(self.path / TO_STORE, {"total": 0})["total"]
        return done, max(done, total)

    def flops_stored(self) -> int:
        """The multiply-adds that the job's members spent on filling the feature store."""
        flops: float = sum(self._stored("flops"))
        return round(flops)

    def _stored(self, name: str) -> list[Any]:
        return [read_json(file, {name: 0})[name] for file in self.path.glob(STORED)]

    def read_shares(self) -> dict[str, float]:
        """Each work's share of the seconds of filling the feature store, by work key."""
        shares: dict[str, float] = read_json(self.path / SHARES, {})
        return shares

    def write_shares(self, shares: Mapping[str, float]) -> None:
        """Write each work's share of the seconds of filling the feature store."""
        write_json(self.path / SHARES, shares)

    def num_drivers(self) -> int | None:
        """How many drivers the job has had, None before the first."""
        count: int | None = read_json(self.path / DRIVERS)
        return count

    def count_driver(self) -> None:
        """Count one more driver."""
        write_json(self.path / DRIVERS, (self.num_drivers() or 0) + 1)

    def read_groups(self) -> tuple[GroupStart, ...]:
        """The starts of the job's worker groups, in order."""
        return tuple(GroupStart(**row) for row in read_json(self.path / GROUPS, []))

    def add_group(self, group: GroupStart) -> None:
        """Note that another worker group begins."""
        write_json(self.path / GROUPS, [asdict(start) for start in (*self.read_groups(), group)])

    def read_losses(self) -> tuple[str, ...]:
        """What killed workers and drivers cost, a line each, oldest first."""
        return tuple(read_json(self.path / LOSSES, []))

    def add_loss(self, line: str) -> None:
        """Add a line about what a killed worker or driver cost."""
        write_json(self.path / LOSSES, [*self.read_losses(), line])

    def read_nodes(self) -> tuple[str, ...]:
        """What the driver saw of the cluster's nodes, a line each, oldest first: who was lost or joined, what is waited for."""
        return tuple(read_json(self.path / NODES, []))

    def add_node(self, line: str) -> None:
        """Add a line about the cluster's nodes. Only the driver does."""
        write_json(self.path / NODES, [*self.read_nodes(), line])


def jobs_root(storage: Path) -> Path:
    """The folder of all jobs under a storage root."""
    return storage / "jobs"


def read_note(file: Path) -> CheckpointNote | None:
    """The note of a checkpoint from its file, None if there is no such file."""
    content = read_json(file)
    return content and CheckpointNote(**content)


def write_note(folder: Path, note: CheckpointNote) -> None:
    """Write the note of a checkpoint into its folder."""
    write_json(folder / CHECKPOINT_NOTE, asdict(note))


def _outcome(content: Mapping[str, Any], flops_stored: int) -> JobOutcome:
    if "scores" in content:
        return JobOutcome(scores=content["scores"])
    trained, reused = tuple(content["trained"]), tuple(content["reused"])
    return JobOutcome(trained, reused, content["num_forwarded"], content["seconds"], flops_stored)
