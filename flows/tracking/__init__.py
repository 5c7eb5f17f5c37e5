"""MLflow runs: a parent a retraining, a child a variant. Nothing of MLflow is loaded before the first call."""

from flows.tracking.links import run_page, version_page
from flows.tracking.moving import reach
from flows.tracking.origin import Origin
from flows.tracking.runs import Tracker
from flows.tracking.stopping import stop_runs
from flows.tracking.variant_runs import VariantRuns

__all__ = ["Origin", "Tracker", "VariantRuns", "reach", "run_page", "stop_runs", "version_page"]
