"""Servers and flow runs that a killed command, mostly `headstart up`, left running, and their end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from flows import processes
from flows.settings import OWNER, Settings
from flows.words import Say, counted

# A run that is asked to end stops its Ray job first, and waits until Ray confirms that.
END_SECONDS = 30.0


def end_orphans(settings: Settings, say: Say | None = None) -> list[int]:
    """End this storage's servers and served runs whose owner was killed, and return their pids; their ports are free then.

    A run ends as after a cancellation: its Ray job first.
    """
    orphans = _find(settings)
    at_work = [one for one in orphans if _is_run(one)]
    if orphans and say:
        kept = f" and {counted(len(at_work), 'run')}, whose trained work is kept" if at_work else ""
        say(f"Ending what a killed `headstart` command left running: {counted(len(orphans) - len(at_work), 'server')}{kept}")
    # The runs first, for they still speak to the servers.
    for group in (at_work, [one for one in orphans if one not in at_work]):
        processes.end(group, END_SECONDS)
    return [one.pid for one in orphans]


def _find(settings: Settings) -> list[psutil.Process]:
    orphans = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
            if _is_ours(env, settings) and _is_of_a_stack(process.cmdline()) and not processes.lives(env[OWNER]):
                orphans.append(process)
        except (psutil.Error, KeyError, OSError):
            continue
    return orphans


def _is_ours(env: Mapping[str, str], settings: Settings) -> bool:
    # Servers keep their files in the workspace if the storage is in a bucket, which several workspaces may share.
    same_folder = isinstance(settings.root, Path) or env.get("HEADSTART_WORKSPACE") == str(settings.workspace)
    return same_folder and env.get("HEADSTART_STORAGE_ROOT") == str(settings.root)


def _is_of_a_stack(words: list[str]) -> bool:
    servers = "mlflow" in words or any(word == "prefect" or word.startswith("prefect.server") for word in words)
    return servers or bool({"prefect.engine", "flows.stack"} & set(words))


def _is_run(process: psutil.Process) -> bool:
    try:
        return "prefect.engine" in process.cmdline()
    except psutil.Error:
        return False
