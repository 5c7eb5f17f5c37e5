"""The stages of a retraining: each takes frozen values, calls one room, and returns frozen values."""

from flows.stages.attendance import attending, end_crashed, forget, roll_call
from flows.stages.closing import close, look_up, recall
from flows.stages.costs import Estimate, ImagePhase, TrunkUse
from flows.stages.data import Ingested, ingest, version_data
from flows.stages.feature_store import FeaturesStatus, StoredTrunk, features_status, prune_features, verify_features
from flows.stages.model_summary import ModelSummary, describe_model
from flows.stages.plan_preview import Preview, preview
from flows.stages.planning import plan_work, planned
from flows.stages.prediction import Answered, Reading, predict
from flows.stages.preflight import dead_servers, preflight_check
from flows.stages.promotion import promote
from flows.stages.report import Counts, Report, report_json
from flows.stages.report_text import describe_measures, leaderboard, pages, verdict_text
from flows.stages.scoring import score
from flows.stages.session import Event, RetrainingSession, listening, open_registry, open_session, stop_retraining, warming
from flows.stages.training import train

__all__ = [
    "Answered",
    "Counts",
    "Estimate",
    "Event",
    "FeaturesStatus",
    "ImagePhase",
    "Ingested",
    "ModelSummary",
    "Preview",
    "Reading",
    "Report",
    "RetrainingSession",
    "StoredTrunk",
    "TrunkUse",
    "attending",
    "close",
    "dead_servers",
    "describe_measures",
    "describe_model",
    "end_crashed",
    "features_status",
    "forget",
    "ingest",
    "leaderboard",
    "listening",
    "look_up",
    "open_registry",
    "open_session",
    "pages",
    "plan_work",
    "planned",
    "predict",
    "preflight_check",
    "preview",
    "promote",
    "prune_features",
    "recall",
    "report_json",
    "roll_call",
    "score",
    "stop_retraining",
    "train",
    "verdict_text",
    "verify_features",
    "version_data",
    "warming",
]
