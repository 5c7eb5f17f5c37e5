"""The folder of a job: the names of all its files, and their content as values.

`<storage>/jobs/<kind>-<key>/` holds the job (`job.json`, `samples.json`), the notes that its driver and the members of its
worker group make on the way, and at the end `outcome.json` or `error.json`.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from flows.errors import ASKED_WRONGLY, AskedWrongly, HeadstartError
from flows.job.error_words import traceback_of, words_of
from flows.job.outcome import JobOutcome
from flows.places import Fact, Place, Root, StoredFile, open_place

JOB, SAMPLES, OUTCOME, ERROR, TRACEBACK = "job.json", "samples.json", "outcome.json", "error.json", "traceback.txt"
TODO, SPAN, TO_STORE, SHARES = "todo.json", "span.json", "features.json", "shares.json"
# `losses.json` holds interruptions, as it did under its earlier name.
DRIVERS, GROUPS, INTERRUPTIONS, NODES = "drivers.json", "groups.json", "losses.json", "nodes.json"
NEXT, SUBMISSION = "next.json", "submission.json"
NOTED = re.compile(r"(stored|fetched)-.*\.json")
EPOCHS = "epochs"


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
class JobFolder:
    """The folder of one job. All of its files appear whole, and each is read and written here alone."""

    place: Place

    @classmethod
    def at(cls, root: Root) -> JobFolder:
        """The job's folder that is a folder of this machine, or that an address names."""
        return cls(open_place(root))

    @property
    def address(self) -> str:
        """The path or the address of the folder, equal for equal jobs."""
        return self.place.address

    @property
    def job_file(self) -> str:
        """The file that the program is started with; written after the samples, so that it stands for the whole job."""
        return self._file(JOB).address

    @property
    def look_seconds(self) -> float:
        """How often to look here for news."""
        return self.place.look_seconds

    def _file(self, name: str) -> StoredFile:
        return StoredFile(self.place, name)

    def read_job(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The job as JSON, and the tables of its samples and masks; `flows.job.job` gives them their meaning.

        Raises AskedWrongly if there is no job.
        """
        fields, tables = self.read_fields(), self._file(SAMPLES).read_json()
        if fields is None or tables is None:
            raise AskedWrongly(f"{self.address} holds no job: it was removed meanwhile; start the retraining again")
        return fields, tables

    def read_fields(self) -> Mapping[str, Any] | None:
        """The job as JSON without its tables, None if there is none."""
        return cast("Mapping[str, Any] | None", self._file(JOB).read_json())

    def write_job(self, fields: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
        """Write what `read_job` reads."""
        self._file(SAMPLES).write_json(tables)
        self._file(JOB).write_json(fields)

    def forget(self) -> None:
        """Remove the notes and the outcome of an earlier job of the same key, before a new one begins."""
        names = (OUTCOME, ERROR, TRACEBACK, NEXT, SUBMISSION, TODO, SPAN, TO_STORE, SHARES, DRIVERS, GROUPS, INTERRUPTIONS, NODES)
        self.place.remove(*(name for name in self.place.facts() if name in names or NOTED.fullmatch(name)))
        self.place.within(EPOCHS).clear()

    def read_outcome(self) -> JobOutcome | None:
        """The outcome of the job, None before its end. If it failed, raises AskedWrongly or HeadstartError with its message."""
        if (outcome := self._file(OUTCOME).read_json()) is not None:
            return JobOutcome.of(outcome, self.flops_stored(), self.num_fetched())
        if (error := self._file(ERROR).read_json()) is not None:
            raise (AskedWrongly if error["asked_wrongly"] else HeadstartError)(error["message"])
        return None

    def has_outcome(self) -> bool:
        """Whether the job has ended with an outcome."""
        return self._file(OUTCOME).exists()

    def hand_on(self, job_file: str) -> None:
        """Hand the driver of this job, which is done, the file of another one; '' lets it end."""
        self._file(NEXT).write_json({"job": job_file})

    def read_next(self) -> str | None:
        """What the driver of this job was handed, None if nothing yet."""
        content: Mapping[str, str] | None = self._file(NEXT).read_json()
        return None if content is None else content["job"]

    def note_submission(self, submission_id: str) -> None:
        """Note which submission's driver is handed this job, which was submitted for another one, or for none yet."""
        self._file(SUBMISSION).write_json(submission_id)

    def read_submission(self) -> str | None:
        """The id of the submission whose driver was handed this job, None if it has one of its own."""
        submission_id: str | None = self._file(SUBMISSION).read_json()
        return submission_id

    def write_outcome(self, outcome: JobOutcome) -> None:
        """Write the outcome of the job."""
        self._file(OUTCOME).write_json(outcome.fields())

    def has_failed(self) -> bool:
        """Whether the job failed for good."""
        return self._file(ERROR).exists()

    def write_error(self, error: Exception) -> None:
        """Write an error's message for people, and whether the request was at fault; the first error stands."""
        if not self.has_failed():
            asked_wrongly = isinstance(error, ASKED_WRONGLY)
            self.place.write(TRACEBACK, traceback_of(error).encode(errors="replace"))
            told = {"asked_wrongly": asked_wrongly, "message": words_of(error, self._file(TRACEBACK).address)}
            self._file(ERROR).write_json(told)

    def read_todo(self) -> tuple[str, ...] | None:
        """The keys of the works that were left when the job began, None before it began."""
        keys = self._file(TODO).read_json()
        return None if keys is None else tuple(keys)

    def write_todo(self, keys: Sequence[str]) -> None:
        """Write the keys of the works that are left as the job begins."""
        self._file(TODO).write_json(list(keys))

    def read_span(self) -> Span | None:
        """The time from the first batch to the latest, None before the first."""
        content = self._file(SPAN).read_json()
        return content and Span(**content)

    def mark_span(self, now: float) -> None:
        """Note that a batch begins or ended now; written again and again, so that it outlives any process."""
        before = self.read_span()
        self._file(SPAN).write_json(asdict(Span(before.first if before else now, now)))

    def write_to_store(self, total: int) -> None:
        """Write the number of samples that the job brings into the feature store in all."""
        self._file(TO_STORE).write_json({"total": total})

    def write_stored(self, num_samples: int, flops: float) -> None:
        """Write the number of samples that this process has stored in the feature store, and their multiply-adds."""
        name = f"stored-{platform.node()}-{os.getpid()}.json"
        self._file(name).write_json({"num_samples": num_samples, "flops": flops})

    def num_stored(self) -> tuple[int, int]:
        """How many samples the job's members have stored in the feature store, and how many there are to store in all."""
        done: int = sum(self._noted("stored", "num_samples"))
        total: int = self._file(TO_STORE).read_json({"total": 0})["total"]
        return done, max(done, total)

    def flops_stored(self) -> int:
        """The multiply-adds that the job's members spent on filling the feature store."""
        return round(sum(map(float, self._noted("stored", "flops"))))

    def write_fetched(self, num_objects: int) -> None:
        """Write the number of samples and masks that this process and its readers have fetched from the data remote."""
        self._file(f"fetched-{platform.node()}-{os.getpid()}.json").write_json({"num_objects": num_objects})

    def num_fetched(self) -> int:
        """How many samples and masks the job's members have fetched from the data remote."""
        return sum(map(int, self._noted("fetched", "num_objects")))

    def _noted(self, kind: str, name: str) -> list[Any]:
        files = [file for file in sorted(self.place.facts()) if (found := NOTED.fullmatch(file)) and found[1] == kind]
        return [self._file(file).read_json({name: 0})[name] for file in files]

    def note_epochs(self, work_key: str, num_epochs: int, *, ended: bool = False) -> None:
        """Note how many epochs of a work are done, by a file of one byte an epoch: one listing then tells all works'."""
        self.place.within(EPOCHS).write(work_key, (b"!" if ended else b".") * num_epochs)

    def epochs(self) -> Mapping[str, Fact]:
        """What was noted of the works' epochs, by work key: `num_bytes` is their number."""
        return self.place.within(EPOCHS).facts()

    def read_shares(self) -> dict[str, float]:
        """Each work's share of the seconds of filling the feature store, by work key."""
        shares: dict[str, float] = self._file(SHARES).read_json({})
        return shares

    def write_shares(self, shares: Mapping[str, float]) -> None:
        """Write each work's share of the seconds of filling the feature store."""
        self._file(SHARES).write_json(shares)

    def num_drivers(self) -> int:
        """How many drivers the job has had."""
        return int(self._file(DRIVERS).read_json(0))

    def count_driver(self) -> None:
        """Count one more driver."""
        self._file(DRIVERS).write_json(self.num_drivers() + 1)

    def read_groups(self) -> tuple[GroupStart, ...]:
        """The starts of the job's worker groups, in order."""
        return tuple(GroupStart(**row) for row in self._file(GROUPS).read_json([]))

    def add_group(self, group: GroupStart) -> None:
        """Note that another worker group begins."""
        self._file(GROUPS).write_json([asdict(start) for start in (*self.read_groups(), group)])

    def read_interruptions(self) -> tuple[str, ...]:
        """What killed workers and drivers cost, a line each, oldest first."""
        return tuple(self._file(INTERRUPTIONS).read_json([]))

    def add_interruption(self, line: str) -> None:
        """Add a line about what a killed worker or driver cost."""
        self._file(INTERRUPTIONS).write_json([*self.read_interruptions(), line])

    def read_nodes(self) -> tuple[str, ...]:
        """What the driver saw of the cluster's nodes, a line each, oldest first: who was lost or joined, what is waited for."""
        return tuple(self._file(NODES).read_json([]))

    def add_node(self, line: str) -> None:
        """Add a line about the cluster's nodes. Only the driver does."""
        self._file(NODES).write_json([*self.read_nodes(), line])


def jobs_root(storage: Root) -> Place:
    """The place of all jobs under a storage root."""
    return open_place(storage).within("jobs")
