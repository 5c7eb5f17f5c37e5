"""`python -m flows.job JOBFILE`, in a cluster: does the job and leaves `outcome.json`, or `error.json`, beside its file."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from flows import owners
from flows.job import order


def _train(job: order.Job) -> dict[str, Any]:
    from flows.job import training

    return training.train(job)


def _score(job: order.Job) -> dict[str, Any]:
    from flows.job import scoring

    return scoring.score(job)


# Each loads its own part only.
PROGRAMS = {"train": _train, "score": _score}


def main(job_file: Path) -> int:
    """The exit status: 0 with `outcome.json` written, 1 with `error.json`."""
    job = order.read(job_file)
    owners.sweep()
    try:
        with owners.temporaries("work"):
            outcome = PROGRAMS[job.kind](job)
    except Exception as error:
        traceback.print_exc()
        order.write_error(job, error)
        return 1
    order.write_json(job.folder / "outcome.json", outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
