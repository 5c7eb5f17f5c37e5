"""The program that runs on the cluster: `python -m flows.job JOBFILE` trains a plan's works, or scores bundles on the holdout.

The names below are for the flow that submits such a job; they load neither torch nor Ray.
"""

from flows.job.holdout.scores import read_scores, scores_file
from flows.job.holdout.trials import leaks_file, read_leaks, robustness_file
from flows.job.job import Job, JobKind, Screening, Tracking, new_folder, write_job
from flows.job.job_folder import JobFolder, jobs_root
from flows.job.outcome import JobOutcome

__all__ = [
    "Job",
    "JobFolder",
    "JobKind",
    "JobOutcome",
    "Screening",
    "Tracking",
    "jobs_root",
    "leaks_file",
    "new_folder",
    "read_leaks",
    "read_scores",
    "robustness_file",
    "scores_file",
    "write_job",
]
