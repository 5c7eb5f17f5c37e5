"""Checks of all that a retraining needs, before anything is started or changed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from flows import cluster, dataset, prefect_server, tracking
from flows.addresses import without_password
from flows.environment import THIS_MACHINE
from flows.errors import AskedWrongly
from flows.plan import Plan
from flows.processes import lives
from flows.settings import Settings, read_stack, stack_words
from flows.stages.first_weights import find_weights
from flows.stages.planning import find_champion


def preflight_check(settings: Settings, plan: Plan, *, prefect: str | None) -> None:
    """Check that the workspace can be written, every address answers, the weights fit, and the workers can be had.

    `prefect` is the address of a standing server. Raises AskedWrongly and WeightsError, each within seconds.
    """
    dataset.open_workspace(settings.workspace)
    check_storage(settings.storage)
    _check_shared(settings)
    tracking.reach(settings.tracking, settings.artifacts)
    if prefect:
        prefect_server.check(prefect)
    cluster.check(settings.ray_address, settings.storage, plan.workers.group())
    start = find_champion(settings, plan)
    for backbone in dict.fromkeys(plan.backbones):
        find_weights(plan, backbone, start)


def _check_shared(settings: Settings) -> None:
    """Check that workers on other machines reach what they write to, if they share no folder with this one."""
    elsewhere = settings.ray_address and urlsplit(settings.ray_address).hostname not in THIS_MACHINE
    if elsewhere and isinstance(settings.root, str) and not settings.tracking.startswith("http"):
        raise AskedWrongly(
            f"Ray is on another machine ({settings.ray_address}) and MLflow is {without_password(settings.tracking)}, with its "
            "artifacts in a folder of this machine, which the job there does not reach: start an MLflow server "
            "(`headstart up`, or infra/README.md) and set HEADSTART_TRACKING_ADDRESS=http://host:5000"
        )


def dead_servers(settings: Settings) -> str:
    """A warning that a running `headstart up` of this storage has lost servers; '' if it has not, or none runs."""
    stack = stack_words(settings)
    if not stack or read_stack(settings):
        return ""
    parts = stack["parts"].split()
    dead = len(parts) - sum(map(lives, parts))
    return (
        f"{dead} of the {len(parts)} servers of the running `headstart up` (pid {stack['pid']}) {'is' if dead == 1 else 'are'} "
        "dead; this retraining does without it: its records go to the same files, and it is seen in the browser afterwards. "
        "It starts them again by itself and says so; where it does not, end it with Ctrl-C and start it anew"
    )


def check_storage(folder: Path) -> None:
    """Check that the storage folder of this machine can be made and written. Raises AskedWrongly."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AskedWrongly(
            f"the storage folder {folder} can not be written ({error.strerror}): mend that, or set HEADSTART_STORAGE_ROOT"
        ) from None
