"""The model registry: versions, aliases and the ledger of verdicts. Nothing of MLflow is loaded before the first call."""

from flows.registry.ledger import LedgerEntry, champion_at
from flows.registry.program import load_exporter
from flows.registry.telling import read_holdout
from flows.registry.versions import Registry

__all__ = ["LedgerEntry", "Registry", "champion_at", "load_exporter", "read_holdout"]
