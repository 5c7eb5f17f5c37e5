"""Where MLflow's pages are: addresses that a browser opens, for a server alone."""

from __future__ import annotations

from urllib.parse import quote


def run_page(address: str, experiment_id: str, run_id: str) -> str | None:
    """The page of a run, or None where MLflow is no server."""
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}" if address.startswith("http") else None


def version_page(address: str, name: str, version: str) -> str | None:
    """The page of a registered version, or None where MLflow is no server."""
    return f"{address.rstrip('/')}/#/models/{quote(name, safe='')}/versions/{version}" if address.startswith("http") else None
