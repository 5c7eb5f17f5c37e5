"""The Ray room: a cluster to work on, jobs submitted to it, and (in `workers`) the worker group inside a job."""

from flows.cluster.api import Cluster
from flows.cluster.capacity import check
from flows.cluster.head import find_cluster, open_cluster
from flows.cluster.jobs import Submission, find, find_by_flow_run, find_orphans, run_job, stop, submit, watch, worker_environment

__all__ = [
    "Cluster",
    "Submission",
    "check",
    "find",
    "find_by_flow_run",
    "find_cluster",
    "find_orphans",
    "open_cluster",
    "run_job",
    "stop",
    "submit",
    "watch",
    "worker_environment",
]
