"""The model registry: versions, aliases and the ledger of verdicts. Nothing of MLflow is loaded before the first call."""

from flows.registry.catalog import BUNDLE_TAG, is_withdrawn
from flows.registry.ledger import Entry, champion_at
from flows.registry.program import load_exporter
from flows.registry.telling import read_holdout
from flows.registry.versions import Registry

__all__ = ["BUNDLE_TAG", "Entry", "Registry", "champion_at", "is_withdrawn", "load_exporter", "read_holdout"]
