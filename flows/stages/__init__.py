"""The stages of a retraining: each takes frozen values, calls one room, and returns frozen values."""

from flows.stages.attendance import attending, end_crashed, forget, roll_call
from flows.stages.closing import close, look_up, recall
from flows.stages.costs import Estimate, ImagePhase, TrunkUse
from flows.stages.feature_store import FeaturesStatus, StoredTrunk, features_status, prune_features, verify_features
from flows.stages.model_summary import ModelSummary, describe_model
from flows.stages.plan_preview import Preview, preview
from flows.stages.planning import Ingested, ingest, make_agenda, planned, version_data
from flows.stages.prediction import Answered, Reading, predict
from flows.stages.preflight import check_reach, dead_servers
from flows.stages.report import Counts, Report, report_json
from flows.stages.report_text import describe_measures, leaderboard, pages, verdict_text
from flows.stages.serving import stop_retraining
from flows.stages.session import Desk, Event, listening, open_desk, open_registry, warming
from flows.stages.training import promote, score, train

__all__ = [
    "Answered",
    "Counts",
    "Desk",
    "Estimate",
    "Event",
    "FeaturesStatus",
    "ImagePhase",
    "Ingested",
    "ModelSummary",
    "Preview",
    "Reading",
    "Report",
    "StoredTrunk",
    "TrunkUse",
    "attending",
    "check_reach",
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
    "make_agenda",
    "open_desk",
    "open_registry",
    "pages",
    "planned",
    "predict",
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
