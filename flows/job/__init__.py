"""The program that runs on the cluster: `python -m flows.job JOBFILE` trains a plan's works, or scores bundles on the holdout.

What is imported from here is for those who order such a job; the program's own parts load torch and Ray only in it.
"""

from flows.job.losses import read_losses
from flows.job.order import (
    Job,
    Screening,
    Tracking,
    begin,
    epochs_done,
    flops_stored,
    is_finished,
    num_stored,
    read_failure,
    read_json,
    read_scores,
    read_trained,
    scores_file,
    write_json,
)

__all__ = [
    "Job",
    "Screening",
    "Tracking",
    "begin",
    "epochs_done",
    "flops_stored",
    "is_finished",
    "num_stored",
    "read_failure",
    "read_json",
    "read_losses",
    "read_scores",
    "read_trained",
    "scores_file",
    "write_json",
]
