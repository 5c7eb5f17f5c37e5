"""A job run to its end: joined or submitted, again if its driver died, or handed to a driver that is there already."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from flows.cluster.api import Cluster
from flows.cluster.deaths import cause_of_death
from flows.cluster.jobs import Submission, Until, find, stop, submit, watch
from flows.errors import HeadstartError
from flows.words import Say, end_of

RESUBMISSIONS = 2
MAX_MESSAGE_CHARS = 3000

Outcome = TypeVar("Outcome", covariant=True)


class JobFiles(Protocol[Outcome]):
    """The files of a job as this room needs them; the program `flows.job` knows their names and their content."""

    @property
    def address(self) -> str:
        """The path or the address of the job's folder; equal for equal jobs."""

    @property
    def job_file(self) -> str:
        """The path or the address of the file that the program is started with."""

    @property
    def look_seconds(self) -> float:
        """How often to look there for the outcome."""

    def forget(self) -> None:
        """Remove the files that an earlier job in the same folder left."""

    def has_outcome(self) -> bool:
        """Whether the job has written its outcome."""

    def read_outcome(self) -> Outcome | None:
        """The outcome of the job, None before its end. Raises the job's own error."""

    def hand_on(self, job_file: str) -> None:
        """Hand the job's driver, which has done it, the file of another job; '' lets it end."""

    def note_submission(self, submission_id: str) -> None:
        """Note which submission's driver is handed this job."""

    def read_submission(self) -> str | None:
        """The id of the submission whose driver was handed this job, None if it has one of its own."""

    def num_drivers(self) -> int:
        """How many drivers have begun the job."""


class Handover:
    """Keeps a driver for the next job, which then finds all loaded; a driver that waits in vain ends by itself."""

    def __init__(self) -> None:
        self._kept: tuple[Submission, JobFiles[object]] | None = None

    @property
    def folder(self) -> str:
        """The folder that the kept driver was submitted with, '' if none is kept."""
        return self._kept[0].folder if self._kept else ""

    def begin(self, cluster: Cluster, files: JobFiles[object], name: str) -> None:
        """Start a driver for jobs of this model name before the first is known; the files are of a folder without a job."""
        metadata = {"job_key": "waiting", "name": name, "flow_run_id": "", "folder": files.address}
        self.keep(submit(cluster, files.job_file, metadata=metadata, option="--wait"), files)

    def keep(self, submission: Submission, files: JobFiles[object]) -> None:
        """Keep the driver of this submission, which has done the job of these files, or waits for its first there."""
        self._kept = submission, files

    def take(self, cluster: Cluster, job: JobFiles[object]) -> Submission | None:
        """Hand the kept driver this job, and return its submission; None if none is kept, or it has ended."""
        kept, self._kept = self._kept, None
        if kept is None or find(cluster, kept[0].folder) is None:
            return None
        job.note_submission(kept[0].submission_id)
        kept[1].hand_on(job.job_file)
        return kept[0]

    def end(self) -> None:
        """Let the kept driver end, if there is one."""
        kept, self._kept = self._kept, None
        # Where its place is out of reach, it ends by itself.
        with suppress(HeadstartError, OSError):
            if kept:
                kept[1].hand_on("")


def run_job(
    cluster: Cluster,
    files: JobFiles[Outcome],
    *,
    key: str,
    name: str,
    flow_run_id: str = "",
    on_start: Callable[[str], None] | None = None,
    say: Say | None = None,
    handover: Handover | None = None,
) -> Outcome:
    """Run the job that these files describe, and return its outcome.

    A job of the same folder that runs is joined, whichever driver does it. A driver that died without an outcome is submitted
    again, twice at most, and goes on from its files. `on_start` gets each submission id, `say` gets messages for people. With a
    `handover` the driver that it keeps takes the job, and the one that did it is kept. Raises the job's own error, and
    HeadstartError if it was stopped.
    """
    metadata = {"job_key": key, "name": name, "flow_run_id": flow_run_id, "folder": files.address}
    submission = find(cluster, files.address, files.read_submission())
    if submission and files.has_outcome():
        # It stays for a flow that is gone, and what that asked for may not be what is asked for now.
        stop(cluster, submission.submission_id)
        submission = None
    was_handed = False
    if submission is None:
        files.forget()
        submission = handover.take(cluster, files) if handover else None
        was_handed = submission is not None
    elif handover:
        # One that was begun ahead is not needed.
        handover.end()
    attempt = 0
    while True:
        if submission is None:
            submission = submit(cluster, files.job_file, metadata=metadata, option="--stay" if handover else "")
        if on_start:
            on_start(submission.submission_id)
        ended = watch(cluster, submission.submission_id, say, _looking(files) if handover else None)
        if (outcome := files.read_outcome()) is not None:
            if handover and ended.is_running:
                handover.keep(ended, files)
            return outcome
        if ended.status == "STOPPED":
            raise HeadstartError(f"the Ray job {ended.submission_id} was stopped before its end; run it again to finish it")
        if was_handed and not files.num_drivers():
            # It had waited too long, and ended before it was handed this one: it counts for no attempt.
            was_handed, submission = False, None
            continue
        attempt += 1
        if attempt > RESUBMISSIONS:
            raise HeadstartError(f"the Ray job's driver died {attempt} times; the last: {_last_words(ended.message)}")
        if say:
            say(f"The Ray job's driver died ({ended.status}); it is started again, and goes on where it was")
        submission = None


def _last_words(message: str) -> str:
    """What a driver died of, then the end of what Ray says of it."""
    # The log behind that is the job's own, and may tell of kills that it outlived.
    cause = cause_of_death(message.partition("last available logs")[0], "the job")
    return f"{cause}\n{end_of(message, MAX_MESSAGE_CHARS)}" if cause else end_of(message, MAX_MESSAGE_CHARS)


def _looking(files: JobFiles[object]) -> Until:
    """Whether the job has its outcome, looked for no more often than its place allows."""
    looked_at, found = 0.0, False

    def look() -> bool:
        nonlocal looked_at, found
        if not found and time.monotonic() - looked_at >= files.look_seconds:
            looked_at, found = time.monotonic(), files.has_outcome()
        return found

    return look
