"""The account of a champion's reign, read from the ledger: what the holdout was asked of earlier challengers, and of which."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from flows import job
from flows.gate.account import WINDOW, Account
from flows.model_version import ModelVersion
from flows.places import Root, StoredFile
from flows.registry import LedgerEntry

SECONDS_A_DAY = 86_400


def account_of(
    history: Sequence[LedgerEntry],
    versions: Mapping[str, ModelVersion],
    champion: ModelVersion,
    storage: Root,
    *,
    metric: str,
    recipe: str,
    work_key: str,
    anchor: str | None = None,
) -> Account:
    """The account of the champion by a measure, beside a candidate of this recipe and work.

    With a margin the account is that of the `anchor` version, from its promotion on: champions that followed it as not worse
    have none of their own.

    `history` is the model's, oldest first, and `versions` are all that it has by their numbers. Verdicts on the candidate's own
    work do not count: a retraining that was killed after its verdict comes to the same one again. A challenger whose scores are
    gone is left out; bets on new samples are of another account (`flows.stages.fresh`).
    """
    since = max((entry.time for entry in history if _anchors(entry, anchor)), default=-math.inf)
    judged = [
        entry
        for entry in history
        if entry.kind == "verdict"
        and not entry.fresh
        and (entry.champion_before == champion.version if anchor is None else entry.time > since)
        and entry.metric in ("", metric)
        and entry.work_key != work_key
    ]
    looks = [entry for entry in judged if entry.is_look]
    days = (time.time() - max(entry.time for entry in looks)) / SECONDS_A_DAY if looks else math.inf
    # A challenger that was judged twice, with a look and without, counts once.
    mine = {(entry.version, entry.data_version): entry for entry in judged if entry.recipe == recipe}
    files = [_scores_of(entry, versions, storage) for entry in mine.values()]
    kept = [file for file in files if file and file.exists()][-(WINDOW - 1) :]
    return Account(len(looks), days, tuple(job.read_scores(file) for file in kept))


def anchor_of(
    history: Sequence[LedgerEntry], versions: Mapping[str, ModelVersion], champion: ModelVersion, metric: str
) -> ModelVersion:
    """The version that losses are counted from: the last one that was promoted as superior, and not taken back since.

    The champion itself, if there is none.
    """
    for entry in reversed(history):
        version = versions.get(entry.version)
        if version and _anchors(entry, version.version) and entry.metric in ("", metric) and not version.is_withdrawn:
            return version
    return champion


def _anchors(entry: LedgerEntry, version: str | None) -> bool:
    return entry.promoted and entry.superior and entry.version == version


def _scores_of(entry: LedgerEntry, versions: Mapping[str, ModelVersion], storage: Root) -> StoredFile | None:
    version = versions.get(entry.version)
    return job.scores_file(storage, version.bundle_digest, entry.data_version) if version and version.bundle_digest else None
