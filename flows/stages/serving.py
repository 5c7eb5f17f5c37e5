"""The end of a retraining that was cancelled."""

from __future__ import annotations

from flows import cluster, tracking
from flows.settings import Settings


def stop_retraining(settings: Settings, flow_run_id: str) -> list[str]:
    """The Ray jobs of a flow run, stopped and confirmed as such by Ray; its MLflow runs that still ran are KILLED."""
    stopped = []
    try:
        found = cluster.find_cluster(settings.ray_address, settings.storage)
        if found is not None:
            for submission in cluster.find_by_flow_run(found, flow_run_id):
                cluster.stop(found, submission.submission_id)
                stopped.append(submission.submission_id)
    finally:
        tracking.stop_runs(settings.tracking, flow_run_id)
    return stopped
