"""Making a workspace of a folder, new or a person's own repository: git, DVC with a remote, and a first commit."""

from __future__ import annotations

import re
from pathlib import Path

from flows.dataset.readiness import check_data, check_git, check_ignore_file, check_text
from flows.dataset.revisions import DATA_FILE, ask, commit, git
from flows.dataset.store import OWN_FILES, init_store, open_store, remote_text
from flows.errors import AskedWrongly
from flows.files import write_whole
from flows.workspace import DATA, STORAGE

_IGNORED = (f"/{DATA}".encode(), f"/{STORAGE}/".encode())
_GIT_IGNORE = ".gitignore"


def init_workspace(folder: Path) -> Path:
    """Make `folder` a workspace: git, DVC with a remote in the folder, and a first commit of both; safe to repeat.

    Raises AskedWrongly, with nothing changed, on a repository in which no data version could be made.
    """
    folder = folder.absolute()
    _check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    if not (folder / ".dvc").is_dir():
        init_store(folder)
    changed = _add_remote(folder / ".dvc" / "config") if open_store(folder).remote_name is None else False
    _append(folder / _GIT_IGNORE, _IGNORED)
    new = [file for file in OWN_FILES if (folder / file).exists() and ask(folder, "cat-file", "-e", f"HEAD:{file}").returncode]
    # The remote goes into the first commit: at a revision, DVC knows only the remotes that are committed there.
    commit(folder, [_GIT_IGNORE, *new, *([".dvc/config"] if changed else [])], "Headstart workspace")
    return folder


def _check(folder: Path) -> None:
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


def _append(file: Path, lines: tuple[bytes, ...]) -> None:
    """Append those of the lines that a person's ignore file lacks; its own bytes and line ends stay."""
    text = file.read_bytes() if file.exists() else b""
    known = {line.strip().rstrip(b"/") for line in text.removeprefix(b"\xef\xbb\xbf").splitlines()}
    missing = [line for line in lines if line.rstrip(b"/") not in known]
    if missing:
        end = _line_end(text)
        start = end if text and not text.endswith((b"\n", b"\r")) else b""
        with file.open("ab") as stream:
            stream.write(start + b"".join(line + end for line in missing))


def _add_remote(config: Path) -> bool:
    """Add a folder of the workspace as the default remote to a DVC configuration that has none; all else in it stays."""
    text = config.read_bytes() if config.exists() else b""
    end = _line_end(text)
    core, remote = (part.replace(b"\n", end) for part in remote_text())
    section = re.search(rb"(?m)^[ \t]*\[[ \t]*['\"]?core['\"]?[ \t]*\][^\r\n]*(?:\r?\n|\Z)", text)
    start = b"" if not text or text.endswith(b"\n") else end
    if section is None:
        text = text + start + b"[core]" + end + core + remote
    else:
        head = text[: section.end()]
        head += b"" if head.endswith(b"\n") else end
        rest = text[section.end() :]
        text = head + core + rest + (start if rest else b"") + remote
    write_whole(config, text)
    return True


def _line_end(text: bytes) -> bytes:
    return b"\r\n" if b"\r\n" in text else b"\n"
