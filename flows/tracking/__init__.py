"""MLflow runs: a parent a retraining, a child a variant. Nothing of MLflow is loaded before the first call."""

from flows.tracking.follow import fill_in, follow, start_runs
from flows.tracking.links import run_page, version_page
from flows.tracking.moving import reach
from flows.tracking.origin import Origin
from flows.tracking.runs import Tracker, stop_runs

__all__ = ["Origin", "Tracker", "fill_in", "follow", "reach", "run_page", "start_runs", "stop_runs", "version_page"]
