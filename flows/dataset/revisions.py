"""What git knows of a workspace's `data.dvc`: its text at a revision, who holds it, and the commit that records it."""

from __future__ import annotations

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
    """The standard output of a git command in the workspace. Raises HeadstartError with git's own words where it fails."""
    done = _run(workspace, *arguments)
    if done.returncode:
        raise HeadstartError(f"git {arguments[0]} failed in {workspace}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def committed_text(workspace: Path, revision: str = "HEAD") -> str | None:
    """The text of `data.dvc` at a revision, or None where that revision has none."""
    done = _run(workspace, "show", f"{revision}:./{DATA_FILE}")
    return None if done.returncode else done.stdout


def resolve(workspace: Path, revision: str) -> str:
    """The full hash of a commit. Raises AskedWrongly where there is no such commit."""
    done = _run(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        raise AskedWrongly(f"revision {revision!r} is not in {workspace}; `headstart data history` lists those that are")
    return done.stdout.strip()


def holder(workspace: Path) -> str | None:
    """The last commit reachable from HEAD that brought `data.dvc` as it now stands, or None where none holds it."""
    text = (workspace / DATA_FILE).read_text()
    if committed_text(workspace) == text:
        return git(workspace, "log", "-1", "--format=%H", "--", DATA_FILE).strip()
    return next((revision.name for revision in revisions(workspace) if revision.text == text), None)


def revisions(workspace: Path) -> list[Revision]:
    """Every commit on HEAD's history that changed `data.dvc`, newest first."""
    done = _run(workspace, "log", "--format=%H%x09%cI%x09%s", "--", DATA_FILE)
    lines = [line.split("\t", 2) for line in done.stdout.splitlines()] if not done.returncode else []
    found = [Revision(name, date, message, committed_text(workspace, name) or "") for name, date, message in lines]
    return [revision for revision in found if revision.text]


def commit(workspace: Path, files: Sequence[str], message: str) -> None:
    """Commit these files and nothing else, whatever else is staged; no commit where they equal HEAD."""
    git(workspace, "add", "--", *files)
    if not _run(workspace, "diff", "--cached", "--quiet", "--", *files).returncode:
        return
    # Only where git knows nobody: an identity given by config or environment stays.
    known = not _run(workspace, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").returncode
    identity = () if known else _FALLBACK_IDENTITY
    git(workspace, *identity, "commit", "--quiet", "--only", "--message", message, "--", *files)


def _run(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(workspace), *arguments], capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        raise HeadstartError("git is not installed; a workspace keeps its data versions in git") from None
