"""Everything about Ray: a cluster, named or local, jobs submitted to it, and (in `workers`) the worker group in a job."""

from flows.cluster.api import Cluster, death
from flows.cluster.capacity import check
from flows.cluster.head import find_cluster, open_cluster, reopen
from flows.cluster.jobs import find_by_flow_run, find_orphans, stop
from flows.cluster.running import Handover, run_job
from flows.cluster.surveying import Node, ray_version, survey

__all__ = [
    "Cluster",
    "Handover",
    "Node",
    "check",
    "death",
    "find_by_flow_run",
    "find_cluster",
    "find_orphans",
    "open_cluster",
    "ray_version",
    "reopen",
    "run_job",
    "stop",
    "survey",
]
