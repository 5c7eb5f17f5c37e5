"""The folder of a job: the names of all its files, and what they hold as values.

`<storage>/jobs/<kind>-<key>/` holds what is asked (`job.json`, `samples.json`), what the driver and the members of its worker
group note on the way, and at the end `outcome.json` or `error.json`.
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

# What a whole worker group goes on from is a folder of Ray's with these two in it.
CHECKPOINT_STATE, CHECKPOINT_NOTE = "state.pt", "work.json"
JOB, SAMPLES, OUTCOME, ERROR = "job.json", "samples.json", "outcome.json", "error.json"
TODO, SPAN, TO_STORE, SHARES = "todo.json", "span.json", "features.json", "shares.json"
DRIVERS, GROUPS, LOSSES = "drivers.json", "groups.json", "losses.json"
STORED = "stored-*.json"
MAX_MESSAGE_CHARS = 6000


@dataclass(frozen=True)
class JobOutcome:
    """What a job brings home.

    A training: the keys of the works that were left to it and of those found done, the images forwarded through variants and
    through trunks, the seconds from its first batch to its last, and the multiply-adds of filling the feature store. A
    scoring: the file of each bundle's score table, by the bundle's path.
    """

    trained: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    num_forwarded: int = 0
    seconds: float = 0.0
    flops_stored: int = 0
    scores: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Span:
    """When a job's first batch began and its last so far ended, in seconds since 1970."""

    first: float
    last: float


@dataclass(frozen=True)
class GroupStart:
    """A worker group began: when, in seconds since 1970, and how many drivers the job had had by then."""

    at: float
    drivers: int


@dataclass(frozen=True)
class CheckpointNote:
    """What a checkpoint of the whole group says of itself: its work, that one's last epoch, and when it was made."""

    work_key: str
    # Checkpoints of before these were noted lack them.
    epoch: int | None = None
    at: float | None = None


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job. All of its files appear whole, and each is read and written here alone."""

    path: Path

    @property
    def job_file(self) -> Path:
        """What the program is started with; written last of what is asked."""
        return self.path / JOB

    def read_job(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The job as JSON, and the tables of its samples; `flows.job.job` makes them and understands them."""
        return json.loads(self.job_file.read_text()), json.loads((self.path / SAMPLES).read_text())

    def write_job(self, fields: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
        """Write both."""
        write_json(self.path / SAMPLES, tables)
        write_json(self.job_file, fields)

    def forget(self) -> None:
        """Remove what an earlier job of the same key left, for a new one that begins."""
        names = (OUTCOME, ERROR, TODO, SPAN, TO_STORE, SHARES, DRIVERS, GROUPS, LOSSES)
        for stale in (*(self.path / name for name in names), *self.path.glob(STORED)):
            stale.unlink(missing_ok=True)

    def read_end(self) -> JobOutcome | None:
        """What the job brings home, None before its end. Raises AskedWrongly or HeadstartError with the job's own message."""
        if (outcome := read_json(self.path / OUTCOME)) is not None:
            return _outcome(outcome, self.flops_stored())
        if (error := read_json(self.path / ERROR)) is not None:
            raise (AskedWrongly if error["asked_wrongly"] else HeadstartError)(error["message"])
        return None

    def write_outcome(self, outcome: JobOutcome) -> None:
        """Write what the job brings home."""
        names = ("trained", "reused", "num_forwarded", "seconds") if outcome.scores is None else ("scores",)
        write_json(self.path / OUTCOME, {name: getattr(outcome, name) for name in names})

    def has_failed(self) -> bool:
        """Whether the job failed for good."""
        return (self.path / ERROR).exists()

    def write_error(self, error: Exception) -> None:
        """Write the message for people, and whether the request was at fault; the first one stands."""
        asked_wrongly = isinstance(error, ASKED_WRONGLY)
        message = str(error) if asked_wrongly else "".join(traceback.format_exception(error))[-MAX_MESSAGE_CHARS:]
        if not self.has_failed():
            write_json(self.path / ERROR, {"asked_wrongly": asked_wrongly, "message": message})

    def read_todo(self) -> tuple[str, ...] | None:
        """The keys of the works that were left when the job began, None before it did."""
        keys = read_json(self.path / TODO)
        return None if keys is None else tuple(keys)

    def write_todo(self, keys: Sequence[str]) -> None:
        """Write them."""
        write_json(self.path / TODO, list(keys))

    def read_span(self) -> Span | None:
        """From the first batch to the last so far, None before the first."""
        content = read_json(self.path / SPAN)
        return content and Span(**content)

    def mark_span(self, now: float) -> None:
        """Note that a batch begins or ended now; written again and again, so that it outlives any process."""
        before = self.read_span()
        write_json(self.path / SPAN, asdict(Span(before.first if before else now, now)))

    def write_to_store(self, total: int) -> None:
        """Note how many samples the job brings into the feature store in all."""
        write_json(self.path / TO_STORE, {"total": total})

    def write_stored(self, num_samples: int, flops: float) -> None:
        """Note how many samples this process brought into the feature store, and at how many multiply-adds."""
        name = STORED.replace("*", f"{platform.node()}-{os.getpid()}")
        write_json(self.path / name, {"num_samples": num_samples, "flops": flops})

    def num_stored(self) -> tuple[int, int]:
        """How many samples the job's members brought through frozen trunks into the feature store, and of how many."""
        done: int = sum(self._stored("num_samples"))
        total: int = read_json(self.path / TO_STORE, {"total": 0})["total"]
        return done, max(done, total)

    def flops_stored(self) -> int:
        """The multiply-adds that the job's members spent on that."""
        flops: float = sum(self._stored("flops"))
        return round(flops)

    def _stored(self, name: str) -> list[Any]:
        return [read_json(file, {name: 0})[name] for file in self.path.glob(STORED)]

    def read_shares(self) -> dict[str, float]:
        """The seconds of filling the feature store by the key of the work that they were for."""
        shares: dict[str, float] = read_json(self.path / SHARES, {})
        return shares

    def write_shares(self, shares: Mapping[str, float]) -> None:
        """Write them."""
        write_json(self.path / SHARES, shares)

    def num_drivers(self) -> int | None:
        """How many drivers the job has had, None where none was counted."""
        count: int | None = read_json(self.path / DRIVERS)
        return count

    def count_driver(self) -> None:
        """Count one more."""
        write_json(self.path / DRIVERS, (self.num_drivers() or 0) + 1)

    def read_groups(self) -> tuple[GroupStart, ...]:
        """The worker groups that began, the first one first."""
        return tuple(GroupStart(**row) for row in read_json(self.path / GROUPS, []))

    def add_group(self, group: GroupStart) -> None:
        """Note that another one begins."""
        write_json(self.path / GROUPS, [asdict(each) for each in (*self.read_groups(), group)])

    def read_losses(self) -> tuple[str, ...]:
        """What killed workers and drivers cost, a line each, oldest first."""
        return tuple(read_json(self.path / LOSSES, []))

    def add_loss(self, line: str) -> None:
        """Add a line."""
        write_json(self.path / LOSSES, [*self.read_losses(), line])


def jobs_root(storage: Path) -> Path:
    """The folder of all jobs under a storage root."""
    return storage / "jobs"


def read_note(file: Path) -> CheckpointNote | None:
    """What the checkpoint whose note this is says of itself, None where there is no such file."""
    content = read_json(file)
    return content and CheckpointNote(**content)


def write_note(folder: Path, note: CheckpointNote) -> None:
    """Leave the note of a checkpoint in its folder."""
    write_json(folder / CHECKPOINT_NOTE, asdict(note))


def _outcome(content: Mapping[str, Any], flops_stored: int) -> JobOutcome:
    if "scores" in content:
        return JobOutcome(scores=content["scores"])
    trained, reused = tuple(content["trained"]), tuple(content["reused"])
    return JobOutcome(trained, reused, content["num_forwarded"], content["seconds"], flops_stored)
