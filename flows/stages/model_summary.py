"""A registered model in short: its champion, the one before it, and the challenger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flows.model_version import ModelVersion
from flows.registry import Registry, read_holdout


@dataclass(frozen=True)
class VersionSummary:
    """A version of a model: what it was made of, its run, and its measures on the holdout."""

    version: str
    variant_id: str | None
    data_version: str | None
    run_id: str | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ModelSummary:
    """A model's champion, the one before it and the present challenger, None if there is no such version.

    `moved_by_hand` says how the champion differs from the ledger's last decision, None if it does not; `waiting` is the version
    that is proven and waits for approval.
    """

    name: str
    champion: VersionSummary | None
    previous: VersionSummary | None
    challenger: VersionSummary | None
    moved_by_hand: str | None = None
    waiting: str | None = None


def describe_model(registry: Registry, name: str) -> ModelSummary:
    """A registered model's present versions. Raises AskedWrongly on an unknown name."""
    current = registry.current(name)
    if not current:
        registry.find(name, "champion")
    moved, waiting = registry.moved_by_hand(name), registry.waiting(name)
    champion, previous, challenger = (_summary(current.get(alias)) for alias in ("champion", "previous", "challenger"))
    return ModelSummary(
        name, champion, previous, challenger, moved.reasons[0] if moved else None, waiting.version if waiting else None
    )


def _summary(version: ModelVersion | None) -> VersionSummary | None:
    if version is None:
        return None
    return VersionSummary(
        version=version.version,
        variant_id=version.variant_id or None,
        data_version=version.data_version or None,
        run_id=version.run_id or None,
        metrics=read_holdout(version.tags),
    )
