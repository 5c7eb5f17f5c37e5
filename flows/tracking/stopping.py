"""Ending the MLflow runs of a flow run in all experiments at an address."""

from __future__ import annotations

from pathlib import Path

from flows.tracking.runs import Tracker


def stop_runs(address: str, flow_run_id: str) -> tuple[str, ...]:
    """Set the running parent runs of a flow run, in all experiments, and their children, to KILLED; their ids."""
    names = Tracker(address, Path(), "").experiments()
    return tuple(run_id for name in names for run_id in Tracker(address, Path(), name).stop_runs(flow_run_id))
