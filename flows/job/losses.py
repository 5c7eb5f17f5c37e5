"""What a killed worker or driver cost a training, in words: told by the group that goes on, read by the flow that waits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.job.order import Job, num_stored, read_json, write_json
from flows.records import Work

# Written by the driver, by each group that begins, and by one that goes on: of one order, whoever carries it out.
DRIVERS, GROUPS, LOSSES = "drivers.json", "groups.json", "losses.json"


def begin_driver(job: Job) -> None:
    """Count this driver of the job."""
    write_json(job.folder / DRIVERS, read_json(job.folder / DRIVERS, 0) + 1)


def begin_group(job: Job, todo: Sequence[Work], titles: Mapping[str, str], checkpoint: Mapping[str, Any] | None) -> None:
    """Note that a group begins, and where another one of this job was killed, what that cost.

    `todo` are the works that are left, `checkpoint` is what the last checkpoint of the whole group says of itself.
    """
    drivers, groups = read_json(job.folder / DRIVERS, 1), read_json(job.folder / GROUPS, [])
    now = time.time()
    if groups and todo:
        who = "A worker" if groups[-1]["drivers"] == drivers else "The driver"
        line = describe(job, todo, titles, checkpoint, who=who, begun=groups[-1]["at"], now=now)
        write_json(job.folder / LOSSES, [*read_losses(job.folder), line])
    write_json(job.folder / GROUPS, [*groups, {"at": now, "drivers": drivers}])


def read_losses(folder: Path) -> list[str]:
    """The lines that a job's folder holds, oldest first."""
    lines: list[str] = read_json(folder / LOSSES, [])
    return lines


def describe(
    job: Job,
    todo: Sequence[Work],
    titles: Mapping[str, str],
    checkpoint: Mapping[str, Any] | None,
    *,
    who: str,
    begun: float,
    now: float,
) -> str:
    """One line: who died, in which epoch of what, what the training goes on from, and how many seconds are lost."""
    halted = [(work, epochs) for work in todo if (epochs := _num_epochs(job, work))]
    # What was finished since the group began is not lost.
    begun = max([begun, *(_changed_at(job, work) for work in job.works if work not in todo)])
    if not halted:
        stored, total = num_stored(job)
        kept = f"{stored} of {total} samples' features are kept" if stored else "nothing had been trained"
        return f"{who} of the training died before the first epoch; {kept}: {now - begun:.0f} s lost"
    work, epochs = halted[0]
    told = f"{who} died in epoch {epochs + 1} of {titles[work.key]}"
    if checkpoint and checkpoint.get("work_key") == work.key and "epoch" in checkpoint:
        lost = now - float(checkpoint["at"])
        return f"{told}; goes on from epoch {checkpoint['epoch'] + 1}'s checkpoint: {lost:.0f} s lost"
    file = job.work_root / work.key / "training.pt"
    if file.is_file():
        return f"{told}; goes on from its last checkpoint: {now - file.stat().st_mtime:.0f} s lost"
    return f"{told}, before its first checkpoint; it begins again: {now - begun:.0f} s lost"


def _num_epochs(job: Job, work: Work) -> int:
    return len(read_json(job.work_root / work.key / "progress.json", {}).get("epochs", []))


def _changed_at(job: Job, work: Work) -> float:
    file = job.work_root / work.key / "result.json"
    return file.stat().st_mtime if file.is_file() else 0.0
