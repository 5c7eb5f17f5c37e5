"""The addresses of MLflow's pages for a browser, if MLflow is a server."""

from __future__ import annotations

from urllib.parse import quote

# Without it MLflow opens a run among the pages of language models: traces, judges, prompts.
_OF_TRAINING = "?workflowType=machine_learning"


def run_page(address: str, experiment_id: str, run_id: str) -> str | None:
    """The page of a run, or None if MLflow is no server."""
    return _page(address, f"experiments/{experiment_id}/runs/{run_id}")


def version_page(address: str, name: str, version: str) -> str | None:
    """The page of a registered version, or None if MLflow is no server."""
    return _page(address, f"models/{quote(name, safe='')}/versions/{version}")


def _page(address: str, path: str) -> str | None:
    return f"{address.rstrip('/')}/#/{path}{_OF_TRAINING}" if address.startswith("http") else None
