"""What a retraining needs beside its plan, looked at before anything is started or changed."""

from __future__ import annotations

import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from flows import cluster, dataset, tracking
from flows.errors import AskedWrongly, Unreachable
from flows.plan import Plan
from flows.settings import Settings
from flows.stages.agenda import find_weights

PROBE_SECONDS = 5.0


def check_reach(settings: Settings, plan: Plan, *, prefect: str | None) -> None:
    """Return where a workspace can be written, every address answers, the weights fit, and the plan's workers can be had.

    `prefect` is the address of a standing server. Raises AskedWrongly, Unreachable and WeightsError, each within seconds.
    """
    dataset.open_workspace(settings.workspace)
    _check_storage(settings.storage)
    tracking.reach(settings.tracking, settings.artifacts)
    if prefect:
        _check_prefect(prefect)
    cluster.check(settings.ray_address, settings.storage, plan.workers.group())
    for backbone in dict.fromkeys(plan.backbones):
        find_weights(plan.weights, backbone)


def _check_storage(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AskedWrongly(
            f"the storage folder {folder} can not be written ({error.strerror}): mend that, or set HEADSTART_STORAGE_ROOT"
        ) from None


def _check_prefect(address: str) -> None:
    advice = "Start it (`headstart up` starts one), set HEADSTART_PREFECT_ADDRESS to http://host:4200/api, or unset it."
    if "prefect.cloud/" in address:  # asks for a key, which is Prefect's own to find
        return
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=PROBE_SECONDS) as answer:
            healthy = answer.read(16).strip() == b"true"
    except urllib.error.HTTPError as error:
        with error:
            healthy = error.code in (401, 403)  # behind a login, which Prefect itself knows
    except (OSError, ValueError) as error:
        raise Unreachable(f"Prefect does not answer at {address} ({getattr(error, 'reason', error)}). {advice}") from None
    if not healthy:
        raise Unreachable(f"{address} answers, but not as Prefect's API does. {advice}")
