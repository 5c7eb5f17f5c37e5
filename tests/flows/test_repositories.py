"""Workspaces in repositories of people's own: what git and DVC say there is found out first, and nothing of theirs changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import dataset
from flows.errors import AskedWrongly, HeadstartError
from flows.landing.digits import bitmap
from flows.settings import Settings
from flows.stages import data

Spoil = Callable[[Path], object]


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "somebody@example.com")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def repository(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder


def write(file: Path, text: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)


def dvc_repository(folder: Path, config: str = "") -> Path:
    from dvc.repo import Repo

    Repo.init(str(repository(folder))).close()
    write(folder / ".dvc/config", config)
    git(folder, "add", ".dvc/config")
    git(folder, "commit", "--quiet", "--message", "mine")
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-classes")
    for number in range(20):
        write(folder / "ab"[number % 2] / f"{number}.bmp", bitmap(bytes([number, *range(63)]), 8))
    return folder


def ingest(workspace: Path, source: Path) -> int:
    return data.ingest(Settings(workspace=workspace), str(source)).samples


def held(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without what git and locks keep there."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(folder: Path, ask: Callable[[], object], *words: str) -> None:
    """What is asked ends with a refusal in these words, and the folder is as it was."""
    before = held(folder)
    with pytest.raises(AskedWrongly) as refusal:
        ask()
    assert [word for word in words if word not in str(refusal.value)] == [], str(refusal.value)
    assert held(folder) == before


ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_QUARANTINE_PATH")


def test_a_commit_goes_into_the_workspaces_repository_whatever_git_told_the_caller(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = repository(tmp_path / "other")
    git(other, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    before = held(other / ".git")
    for name in ELSEWHERE:
        monkeypatch.setenv(name, str(other / (".git" if name != "GIT_WORK_TREE" else "")))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git/objects"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'core.bare=true'")
    workspace = dataset.init_workspace(tmp_path / "workspace")
    assert ingest(workspace, source) == 20
    commit = dataset.head_commit(workspace)
    assert os.environ["GIT_DIR"] == str(other / ".git"), "the caller has its own back"
    for name in (*ELSEWHERE, "GIT_CONFIG_PARAMETERS"):
        monkeypatch.delenv(name)
    assert git(workspace, "log", "--format=%s").splitlines() == [f"Data from {source}", "Headstart workspace"]
    assert git(workspace, "rev-parse", "HEAD").strip() == commit
    assert git(workspace, "status", "--porcelain") == ""
    assert git(other, "log", "--format=%s").split() == ["theirs"]
    assert held(other / ".git") == before


def test_an_ingest_in_a_hook_of_another_repository_commits_to_the_workspace(source: Path, tmp_path: Path) -> None:
    workspace, other = dataset.init_workspace(tmp_path / "workspace"), repository(tmp_path / "other")
    git(other, "commit", "--quiet", "--allow-empty", "--message", "first")
    program = (
        "import sys; from pathlib import Path; from flows.stages.data import ingest; from flows.settings import Settings; "
        f"ingest(Settings(workspace=Path({str(workspace)!r})), {str(source)!r})"
    )
    hook = other / ".git/hooks/pre-commit"
    write(hook, f'#!/bin/sh\ncd {Path(__file__).parents[2]} && exec {sys.executable} -c "{program}"\n')
    hook.chmod(0o755)
    tree = tmp_path / "tree"  # where git tells its hooks the most
    git(other, "worktree", "add", "--quiet", "--detach", str(tree))
    write(tree / "notes.txt", "theirs")
    git(tree, "add", "notes.txt")
    git(tree, "commit", "--quiet", "--message", "theirs")
    assert git(tree, "show", "--name-only", "--format=").split() == ["notes.txt"]
    assert git(workspace, "show", "--name-only", "--format=").split() == ["data.dvc"]
    assert len(dataset.read_version(workspace).samples) == 20


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"caf\xe9/\n*.log", b"caf\xe9/\n*.log\n/data\n/.headstart/\n"),
        (b"caf\xe9/\r\n*.log\r\n", b"caf\xe9/\r\n*.log\r\n/data\r\n/.headstart/\r\n"),
        (b"a\r\nb", b"a\r\nb\r\n/data\r\n/.headstart/\r\n"),
        (b"\xef\xbb\xbf/data\n\x0cx y \n", b"\xef\xbb\xbf/data\n\x0cx y \n/.headstart/\n"),
        (b"/.headstart\n\n\n/data/", b"/.headstart\n\n\n/data/"),
    ],
    ids=["latin-1", "latin-1 with CRLF", "CRLF without an end", "a byte order mark", "all there"],
)
def test_a_gitignore_keeps_its_bytes_and_line_ends(tmp_path: Path, before: bytes, after: bytes) -> None:
    folder = repository(tmp_path / "mine")
    write(folder / ".gitignore", before)
    dataset.init_workspace(folder)
    assert (folder / ".gitignore").read_bytes() == after
    assert git(folder, "check-ignore", "data/x", ".headstart/x").split() == ["data/x", ".headstart/x"]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ("", b"[core]\n    remote = storage\n['remote \"storage\"']\n    url = ../.headstart/remote\n"),
        (
            "# Fr\xe9d\r\n[core]\r\n  autostage = true",
            b"# Fr\xc3\xa9d\r\n[core]\r\n    remote = storage\r\n  autostage = true\r\n"
            b"['remote \"storage\"']\r\n    url = ../.headstart/remote\r\n",
        ),
        (
            '["core"]\n[cache]\n    type = copy\n',
            b'["core"]\n    remote = storage\n[cache]\n    type = copy\n[\'remote "storage"\']\n    url = ../.headstart/remote\n',
        ),
    ],
    ids=["empty", "with a core", "with a cache"],
)
def test_a_dvc_repository_without_a_remote_gets_one_and_keeps_what_it_says(
    source: Path, tmp_path: Path, config: str, kept: bytes
) -> None:
    folder = dvc_repository(tmp_path / "mine", config)
    refused(folder, lambda: ingest(folder, source), "no default remote", "headstart init", "remote = NAME")
    dataset.init_workspace(folder)
    assert (folder / ".dvc/config").read_bytes() == kept
    assert git(folder, "show", "HEAD:.dvc/config").encode() == kept.replace(b"\r\n", b"\n")
    assert ingest(folder, source) == 20
    assert any((folder / ".headstart/remote").rglob("*"))


def test_a_dvc_repository_with_remotes_and_no_default_is_asked_for_one(tmp_path: Path) -> None:
    folder = dvc_repository(tmp_path / "mine", "['remote \"ours\"']\n    url = /srv/ours\n")
    refused(folder, lambda: dataset.init_workspace(folder), "ours", "remote = NAME", "[core]")
    write(folder / ".dvc/config", "[core]\n    remote = theirs\n['remote \"ours\"']\n    url = /srv/ours\n")
    refused(folder, lambda: dataset.init_workspace(folder), "'theirs'", "does not describe")


def _track(file: str) -> Spoil:
    return lambda folder: (
        write(folder / file, "mine"),
        git(folder, "add", "--force", file),
        git(folder, "commit", "-qm", "mine"),
    )


def _merge(folder: Path) -> None:
    write(folder / "notes", "theirs")
    git(folder, "add", "notes")
    git(folder, "commit", "-qm", "notes")
    git(folder, "update-ref", "MERGE_HEAD", "HEAD")


FOLDERS: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "data tracked by git": (_track("data/notes.txt"), ("git tracks data/", "git rm -r --cached data")),
    "data that is a file": (lambda folder: write(folder / "data", "mine"), ("data is a file",)),
    "data that is a link": (lambda folder: (folder / "data").symlink_to(folder.parent), ("data is a link", "[cache]")),
    "data.dvc ignored": (lambda folder: write(folder / ".gitignore", "*.dvc\n"), ("git ignores", "data.dvc", ".gitignore:")),
    "all ignored": (lambda folder: write(folder / ".git/info/exclude", "*\n"), ("git ignores", "data.dvc", "exclude:1:*")),
    "data.dvc of a file": (
        lambda folder: write(folder / "data.dvc", "outs:\n- md5: 0123\n  path: data\n"),
        ("data.dvc keeps 'data' for DVC, as a file",),
    ),
    "data.dvc of another folder": (
        lambda folder: write(folder / "data.dvc", "outs:\n- md5: 0123.dir\n  path: pictures\n"),
        ("data.dvc keeps 'pictures'", "another name"),
    ),
    "a merge half done": (_merge, ("in the middle of a merge", "--abort")),
    ".dvcignore in latin-1": (lambda folder: write(folder / ".dvcignore", b"caf\xe9\n"), (".dvcignore is not UTF-8",)),
    "a root elsewhere": (lambda folder: git(folder, "config", "core.worktree", str(folder.parent)), ("has its files in",)),
    "bare": (lambda folder: git(folder, "config", "core.bare", "true"), ("bare git repository",)),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_repository_that_cannot_hold_data_versions_is_refused_by_init_and_before_an_ingest(
    source: Path, tmp_path: Path, kind: str
) -> None:
    spoil, words = FOLDERS[kind]
    folder = repository(tmp_path / "mine")
    spoil(folder)
    refused(folder, lambda: dataset.init_workspace(folder), *words)
    workspace = dataset.init_workspace(tmp_path / "workspace")
    spoil(workspace)
    refused(workspace, lambda: ingest(workspace, source), *words)


def test_a_bare_repository_and_an_ignore_file_of_two_bytes_a_letter_are_no_workspaces(tmp_path: Path) -> None:
    (tmp_path / "bare.git").mkdir()
    git(tmp_path / "bare.git", "init", "--quiet", "--bare")
    refused(tmp_path / "bare.git", lambda: dataset.init_workspace(tmp_path / "bare.git"), "bare git repository", "clone")
    folder = repository(tmp_path / "mine")
    write(folder / ".gitignore", "*.log\n".encode("utf-16"))
    refused(folder, lambda: dataset.init_workspace(folder), ".gitignore is UTF-16", "UTF-8")


@pytest.mark.parametrize("pattern", ["*.bmp", "images/", "/data", "*.csv", "a", "7.*"])
def test_pictures_that_dvc_would_leave_out_are_named_with_the_pattern_before_any_is_moved(
    source: Path, tmp_path: Path, pattern: str
) -> None:
    workspace = dataset.init_workspace(tmp_path / "workspace")
    write(workspace / ".dvcignore", f"# mine\n{pattern}\n")
    refused(workspace, lambda: ingest(workspace, source), "DVC leaves", f".dvcignore:2:{pattern}", "take that line out")


def test_what_a_dvc_pipeline_makes_in_data_is_refused_and_what_it_makes_elsewhere_is_not(source: Path, tmp_path: Path) -> None:
    workspace = dataset.init_workspace(tmp_path / "workspace")
    write(workspace / "dvc.yaml", "stages:\n  prepare:\n    cmd: make\n    outs: [data/images]\n")
    refused(workspace, lambda: ingest(workspace, source), "dvc.yaml", "data/images", "another folder")
    write(workspace / "dvc.yaml", "stages:\n  prepare:\n    cmd: make\n    outs: [drawings]\n")
    assert ingest(workspace, source) == 20


def test_a_commit_that_a_hook_refuses_leaves_data_dvc_as_it_was_and_the_next_run_mends_it(source: Path, tmp_path: Path) -> None:
    workspace = dataset.init_workspace(tmp_path / "workspace")
    hook = workspace / ".git/hooks/pre-commit"
    write(hook, "#!/bin/sh\necho the linter is unhappy >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(HeadstartError, match=r"git commit failed(?s:.*)the linter is unhappy"):
        ingest(workspace, source)
    assert not (workspace / "data.dvc").exists()
    assert git(workspace, "status", "--porcelain") == ""
    hook.unlink()
    assert ingest(workspace, source) == 20


def test_an_init_whose_commit_failed_commits_all_of_it_the_next_time(tmp_path: Path) -> None:
    folder = repository(tmp_path / "mine")
    hook = folder / ".git/hooks/pre-commit"
    write(hook, "#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(HeadstartError, match="git commit failed"):
        dataset.init_workspace(folder)
    hook.unlink()
    dataset.init_workspace(folder)
    assert "storage" in git(folder, "show", "HEAD:.dvc/config")
    assert git(folder, "status", "--porcelain") == ""


def test_worktrees_submodules_and_a_head_that_is_detached_hold_workspaces(source: Path, tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    git(main, "commit", "--quiet", "--allow-empty", "--message", "first")
    git(main, "worktree", "add", "--quiet", "--detach", str(tmp_path / "worktree"))
    git(repository(tmp_path / "above"), "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(main), "below")
    for folder in (tmp_path / "worktree", tmp_path / "above/below"):
        dataset.init_workspace(folder)
        assert ingest(folder, source) == 20
        assert git(folder, "status", "--porcelain") == ""
    assert git(main, "log", "--format=%s").split() == ["first"]
