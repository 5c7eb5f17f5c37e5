"""A workspace's `data.dvc` in git: its text at a revision, the commits that changed it, and committing it."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import AskedWrongly, HeadstartError

DATA_FILE = "data.dvc"
_FALLBACK_IDENTITY = ("-c", "user.name=headstart", "-c", "user.email=headstart@localhost")


@dataclass(frozen=True)
class Revision:
    """A commit that changed `data.dvc`: its hash, its date in ISO 8601, its first line, and the text it holds."""

    name: str
    date: str
    message: str
    text: str


def git(workspace: Path, *arguments: str) -> str:
    """The standard output of a git command in the workspace. Raises HeadstartError with git's own words if it fails."""
    done = ask(workspace, *arguments)
    if done.returncode:
        verb = next(word for word in arguments if "=" not in word and not word.startswith("-"))
        raise HeadstartError(f"git {verb} failed in {workspace}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def committed_text(workspace: Path, revision: str = "HEAD") -> str | None:
    """The text of `data.dvc` at a revision, or None if that revision has none."""
    done = ask(workspace, "show", f"{revision}:./{DATA_FILE}")
    if done.returncode:
        check_repository(workspace)
        return None
    return done.stdout


def check_repository(workspace: Path) -> None:
    """Raise AskedWrongly, with git's own words, if git does not take the folder for a repository (another user's, damaged)."""
    answer = ask(workspace, "rev-parse", "--git-dir")
    if answer.returncode:
        raise AskedWrongly(f"git does not take {workspace} for a repository: {answer.stderr.strip()}")


def resolve(workspace: Path, revision: str) -> str:
    """The full hash of a commit. Raises AskedWrongly if there is no such commit."""
    done = ask(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        check_repository(workspace)
        raise AskedWrongly(f"revision {revision!r} is not in {workspace}; `headstart data history` lists those that are")
    return done.stdout.strip()


def head_commit(workspace: Path) -> str:
    """The commit at HEAD of the workspace, or 'unknown' outside git."""
    done = ask(workspace, "rev-parse", "HEAD")
    return "unknown" if done.returncode else done.stdout.strip()


def pointer_text(workspace: Path) -> str:
    """The text of `data.dvc` on disk, decoded as `committed_text` decodes git's."""
    return (workspace / DATA_FILE).read_text(encoding="utf-8", errors="replace")


def holder(workspace: Path) -> str | None:
    """The last commit reachable from HEAD that made `data.dvc` what it now is, or None if none did."""
    text = pointer_text(workspace)
    if committed_text(workspace) == text:
        return git(workspace, "log", "--no-show-signature", "-1", "--format=%H", "--", DATA_FILE).strip()
    return next((revision.name for revision in revisions(workspace) if revision.text == text), None)


def revisions(workspace: Path) -> list[Revision]:
    """Every commit on HEAD's history that changed `data.dvc`, newest first."""
    done = ask(workspace, "log", "--no-show-signature", "--format=%H%x09%cI%x09%s", "--", DATA_FILE)
    if done.returncode:  # as before the first commit
        check_repository(workspace)
        return []
    lines = [line.split("\t", 2) for line in done.stdout.splitlines()]
    changes = [Revision(name, date, message, committed_text(workspace, name) or "") for name, date, message in lines]
    return [revision for revision in changes if revision.text]


def commit(workspace: Path, files: Sequence[str], message: str) -> None:
    """Commit these files and nothing else, whatever else is staged; no commit if they equal HEAD.

    Raises HeadstartError if git or a hook refuses the commit; the files are unstaged then.
    """
    git(workspace, "add", "--", *files)
    if not ask(workspace, "diff", "--cached", "--quiet", "--", *files).returncode:
        return
    # Only if git has no identity: one set by configuration or environment stays.
    known = not ask(workspace, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").returncode
    identity = () if known else _FALLBACK_IDENTITY
    try:
        git(workspace, *identity, "commit", "--quiet", "--only", "--message", message, "--", *files)
    except HeadstartError:
        ask(workspace, "reset", "--quiet", "--", *files)
        raise


@functools.cache
def local_variables() -> frozenset[str]:
    """The names of the variables by which git tells its child processes, such as hooks, which repository is meant.

    In a hook of another repository they are set, and would override the workspace's folder.
    """
    answer = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=False)
    return frozenset((*answer.stdout.split(), "GIT_QUARANTINE_PATH"))


def ask(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The finished process of a git command in the workspace. Raises HeadstartError if there is no git."""
    try:
        environment = {name: value for name, value in os.environ.items() if name not in local_variables()}
        return subprocess.run(
            ["git", "-C", str(workspace), *arguments],
            capture_output=True, encoding="utf-8", errors="replace", check=False, env=environment,
        )  # fmt: skip
    except FileNotFoundError:
        raise HeadstartError("git is not installed; a workspace keeps its data versions in git") from None
