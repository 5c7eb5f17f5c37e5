"""MLflow runs: a parent a retraining, a child a variant. Nothing of MLflow is loaded before the first call."""

from flows.tracking.follow import fill_in, follow
from flows.tracking.origin import Origin
from flows.tracking.runs import Tracker, stop_runs
from flows.tracking_server import check

__all__ = ["Origin", "Tracker", "check", "fill_in", "follow", "stop_runs"]
