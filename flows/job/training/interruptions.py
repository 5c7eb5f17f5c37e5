"""What a killed worker or driver cost a training, in words: noted by the next worker group, and shown by the waiting flow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from flows.job.job import Job
from flows.job.job_folder import GroupStart
from flows.job.training.checkpoint_note import CheckpointNote
from flows.records import Work
from flows.words import counted


def begin_group(job: Job, todo: Sequence[Work], titles: Mapping[str, str], checkpoint: CheckpointNote | None) -> None:
    """Note that a worker group begins, and, if an earlier one of this job was killed, what that cost.

    `todo` are the works that are left, `checkpoint` is the note of the last checkpoint of the whole group.
    """
    drivers, groups = max(1, job.folder.num_drivers()), job.folder.read_groups()
    now = time.time()
    if groups and todo:
        before, size = groups[-1].num_workers or job.workers.count, job.workers.count
        who, did = ("A worker", "died") if groups[-1].drivers == drivers else ("The driver", "died")
        if size > before and groups[-1].drivers == drivers:
            # Ray ends a group to begin a larger one; a lost member leaves as many, or fewer.
            who, did = "The worker group", "was ended for a larger one"
        line = describe(job, todo, titles, checkpoint, who=who, did=did, begun=groups[-1].at, now=now)
        job.folder.add_interruption(line if size == before else f"{line}; {counted(size, 'worker')} instead of {before}")
    job.folder.add_group(GroupStart(now, drivers, job.workers.count))


def describe(
    job: Job,
    todo: Sequence[Work],
    titles: Mapping[str, str],
    checkpoint: CheckpointNote | None,
    *,
    who: str,
    did: str = "died",
    begun: float,
    now: float,
) -> str:
    """One line: who died, or what else they `did`, in which epoch of which work, where it goes on, how many seconds are lost."""
    halted = [(work, epochs) for work in todo if (epochs := len(job.work_folder(work).read_progress()))]
    # Works that finished since the group began are not lost.
    begun = max([begun, *(job.work_folder(work).finished_at() for work in job.works if work not in todo)])
    if not halted:
        stored, total = job.folder.num_stored()
        kept = f"{stored} of {total} samples' features are kept" if stored else "nothing had been trained"
        return f"{who} of the training {did} before the first epoch; {kept}: {now - begun:.0f} s lost"
    work, epochs = halted[0]
    death = f"{who} {did} in epoch {epochs + 1} of {titles[work.key]}"
    if checkpoint and checkpoint.work_key == work.key and checkpoint.epoch is not None and checkpoint.at is not None:
        return f"{death}; goes on from epoch {checkpoint.epoch + 1}'s checkpoint: {now - checkpoint.at:.0f} s lost"
    if written_at := job.work_folder(work).checkpoint_written_at():
        return f"{death}; goes on from its last checkpoint: {now - written_at:.0f} s lost"
    return f"{death}, before its first checkpoint; it begins again: {now - begun:.0f} s lost"
