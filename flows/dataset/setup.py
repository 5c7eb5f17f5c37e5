"""Making a workspace of a folder, new or a person's own repository: git, DVC with a remote, and a first commit."""

from __future__ import annotations

from pathlib import Path

from flows.dataset.readiness import check_data, check_git, check_ignore_file, check_text
from flows.dataset.remotes import add_remote, check_remote, init_store, line_end
from flows.dataset.revisions import DATA_FILE, ask, commit, git
from flows.dataset.store import OWN_FILES, open_store
from flows.errors import AskedWrongly
from flows.records import Remote
from flows.workspace import DATA, STORAGE

_IGNORED = (f"/{DATA}".encode(), f"/{STORAGE}/".encode())
_GIT_IGNORE = ".gitignore"


def init_workspace(folder: Path, remote: Remote | None = None) -> Path:
    """Make `folder` a workspace: git, DVC with a remote (None: in the folder), and a first commit of both; safe to repeat.

    Raises AskedWrongly, with nothing changed, on a repository in which no data version could be made, or that has another
    remote, and if the remote does not answer.
    """
    folder = folder.absolute()
    _check(folder, remote)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    if not (folder / ".dvc").is_dir():
        init_store(folder, remote)
    changed = add_remote(folder, remote) if open_store(folder).remote_name is None else False
    _append(folder / _GIT_IGNORE, _IGNORED)
    new = [file for file in OWN_FILES if (folder / file).exists() and ask(folder, "cat-file", "-e", f"HEAD:{file}").returncode]
    # The remote goes into the first commit: at a revision, DVC knows only the remotes that are committed there.
    commit(folder, [_GIT_IGNORE, *new, *([".dvc/config"] if changed else [])], "Headstart workspace")
    return folder


def _check(folder: Path, remote: Remote | None) -> None:
    if (folder / ".git").exists() or (folder / "HEAD").is_file():
        check_git(folder, (_GIT_IGNORE, *OWN_FILES, DATA_FILE))
    check_data(folder)
    check_text(folder / _GIT_IGNORE)
    check_ignore_file(folder)
    if (folder / ".dvc").is_dir():
        store = open_store(folder)
        if store.remote_name is None and store.remotes:
            raise AskedWrongly(
                f"the DVC repository {folder} has remotes ({', '.join(store.remotes)}) and none of them is the default: "
                "write `remote = NAME` under [core] in .dvc/config"
            )
        if remote and store.remote_name is not None and store.bucket != remote:
            raise AskedWrongly(
                f"{folder} is a workspace with the remote {store.remote_name} already; `headstart data remote {remote.address}`, "
                "run in it, sets another and pushes what is there"
            )
    if remote:
        check_remote(remote)


def _append(file: Path, lines: tuple[bytes, ...]) -> None:
    """Append those of the lines that a person's ignore file lacks; its own bytes and line ends stay."""
    text = file.read_bytes() if file.exists() else b""
    known = {line.strip().rstrip(b"/") for line in text.removeprefix(b"\xef\xbb\xbf").splitlines()}
    missing = [line for line in lines if line.rstrip(b"/") not in known]
    if missing:
        end = line_end(text)
        start = end if text and not text.endswith((b"\n", b"\r")) else b""
        with file.open("ab") as stream:
            stream.write(start + b"".join(line + end for line in missing))
