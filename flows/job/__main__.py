"""`python -m flows.job JOBFILE`, in a cluster: does the job, and leaves what it brings home or its error beside its file."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from flows import owners
from flows.job.job import Job, read
from flows.job.job_folder import JobFolder, JobOutcome


def _train(job: Job) -> JobOutcome:
    from flows.job import driver, member

    return driver.train(job, member.train_works)


def _score(job: Job) -> JobOutcome:
    from flows.job import scoring

    return scoring.score(job)


# Each loads its own part only.
PROGRAMS = {"train": _train, "score": _score}


def main(job_file: Path) -> int:
    """The exit status: 0 with the outcome written, 1 with the error."""
    job = read(JobFolder(job_file.parent))
    owners.sweep()
    try:
        with owners.temporaries("work"):
            outcome = PROGRAMS[job.kind](job)
    except Exception as error:
        traceback.print_exc()
        job.folder.write_error(error)
        return 1
    job.folder.write_outcome(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
