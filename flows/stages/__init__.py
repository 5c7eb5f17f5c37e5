"""The stages of a retraining: each takes frozen values, calls one room, and returns frozen values."""

from flows.stages.agenda import ingest, make_agenda, preview, version_data
from flows.stages.attendance import attending, end_crashed, forget, roll_call
from flows.stages.desk import Desk, Event, listening, open_desk, open_registry, warming
from flows.stages.features import features_status, prune_features, verify_features
from flows.stages.prediction import predict
from flows.stages.reach import check_reach
from flows.stages.report import close, describe_measures, describe_model, finished, leaderboard, pages, recall, verdict_text
from flows.stages.serving import stop_retraining
from flows.stages.work import promote, score, train

__all__ = [
    "Desk",
    "Event",
    "attending",
    "check_reach",
    "close",
    "describe_measures",
    "describe_model",
    "end_crashed",
    "features_status",
    "finished",
    "forget",
    "ingest",
    "leaderboard",
    "listening",
    "make_agenda",
    "open_desk",
    "open_registry",
    "pages",
    "predict",
    "preview",
    "promote",
    "prune_features",
    "recall",
    "roll_call",
    "score",
    "stop_retraining",
    "train",
    "verdict_text",
    "verify_features",
    "version_data",
    "warming",
]
