"""Checks that git, DVC and `data/` of a folder are fit for data versions, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from flows.dataset.pointer import parse_pointer
from flows.dataset.revisions import DATA_FILE, ask, check_repository, pointer_text
from flows.dataset.store import Store, open_store
from flows.errors import AskedWrongly
from flows.workspace import DATA

DVC_IGNORE = ".dvcignore"
# While one of these files is there, git is in the middle of this operation, and does not commit single files.
_HALF_DONE = {"MERGE_HEAD": "merge", "CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert"}
_TWO_BYTE_MARKS = (b"\xff\xfe", b"\xfe\xff")


def check_ready(workspace: Path) -> None:
    """Check that a data version can be made of `data/`.

    Raises AskedWrongly, with what to do, if git or DVC would refuse that after the data was moved in.
    """
    check_git(workspace, (DATA_FILE,))
    check_data(workspace)
    store = open_store(workspace)
    if store.remote_name is None:
        raise AskedWrongly(
            f"the DVC repository {workspace} has no default remote, and a data version is pushed to one before it is committed: "
            f"run `headstart init {workspace}`, which adds a folder of the workspace, or name one of yours as "
            "`remote = NAME` under [core] in .dvc/config"
        )
    check_ignore_file(workspace)
    if store.remote is None or _other_dvc_files(workspace):
        store.check_layout()


def check_git(folder: Path, files: Sequence[str]) -> None:
    """Check that this folder is the root of a git repository that can commit these files and does not track `data/`.

    Raises AskedWrongly if it is bare or its root lies elsewhere, a merge is under way, `data/` is tracked, or git ignores one
    of the files.
    """
    answer = ask(folder, "rev-parse", "--is-bare-repository", "--absolute-git-dir", "--show-toplevel")
    lines = answer.stdout.splitlines()
    if lines[:1] == ["true"]:
        raise AskedWrongly(f"{folder} is a bare git repository, which has no files beside it; give a clone of it")
    if answer.returncode:
        check_repository(folder)
    if Path(lines[2]).resolve() != folder.resolve():
        raise AskedWrongly(f"the git repository of {folder} has its files in {lines[2]}; a workspace is a repository's own root")
    for name, what in _HALF_DONE.items():
        if (Path(lines[1]) / name).exists():
            raise AskedWrongly(f"{folder} is in the middle of a {what}; end it (`git {what} --continue` or `--abort`) first")
    if ask(folder, "ls-files", "--", DATA).stdout:
        raise AskedWrongly(
            f"git tracks {DATA}/ in {folder}, where DVC is to keep the data: move those files elsewhere, or stop tracking them "
            f"(`git rm -r --cached {DATA}`, then `git commit`)"
        )
    _check_not_ignored(folder, files)


def check_data(folder: Path) -> None:
    """Check that `data` is a folder or missing, and that `data.dvc`, if there is one, tracks it.

    Raises AskedWrongly if not: a person's own `data.dvc` would be overwritten.
    """
    data = folder / DATA
    if data.is_symlink():
        raise AskedWrongly(
            f"{data} is a link, and DVC adds nothing behind one: make it a folder; to keep the bytes on another disk, "
            "set `dir` under [cache] in .dvc/config"
        )
    if data.exists() and not data.is_dir():
        raise AskedWrongly(f"{data} is a file, where a workspace has the folder of its data: give it another name")
    if (folder / DATA_FILE).exists():
        parse_pointer(pointer_text(folder), str(folder / DATA_FILE))


def check_ignore_file(folder: Path) -> None:
    """Raise AskedWrongly if DVC can not read the person's `.dvcignore`."""
    try:
        (folder / DVC_IGNORE).read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return
    except UnicodeDecodeError as error:
        raise AskedWrongly(f"{folder / DVC_IGNORE} is not UTF-8 ({error.reason}), which DVC asks for; save it so") from None


def check_names(workspace: Path, names: Iterable[str]) -> None:
    """Raise AskedWrongly if a `.dvcignore` leaves out one of these files of `data/`: a version would lack them."""
    files = (workspace / DVC_IGNORE, workspace / DATA / DVC_IGNORE)
    if any(_patterns(file) for file in files):
        refuse_ignored(open_store(workspace), names)


def refuse_ignored(store: Store, names: Iterable[str]) -> None:
    """Raise AskedWrongly with the pattern by which DVC leaves out one of these files of `data/`."""
    names = list(names)
    ignored = store.ignored(names) if names else {}
    if ignored:
        name, pattern = next(iter(ignored.items()))
        raise AskedWrongly(
            f"DVC leaves {len(ignored)} files of {store.workspace / DATA} out, e.g. {name}, because of {pattern}; "
            f"take that line out, or add !/{DATA}/** below it"
        )


def check_text(file: Path) -> None:
    """Raise AskedWrongly if a person's ignore file is UTF-16: git reads no line of it, nor one that we would add."""
    if file.exists() and file.read_bytes()[:2] in _TWO_BYTE_MARKS:
        raise AskedWrongly(f"{file} is UTF-16, of which git reads no line; save it as UTF-8 first")


def _check_not_ignored(folder: Path, files: Sequence[str]) -> None:
    ignored = ask(folder, "check-ignore", "--", *files).stdout.splitlines()
    if ignored:
        why = ask(folder, "check-ignore", "--verbose", "--", ignored[0]).stdout.partition("\t")[0]
        raise AskedWrongly(
            f"git ignores {', '.join(ignored)} in {folder} ({why}), and the workspace keeps its data versions in git: "
            "take that line out, or make an exception of them below it"
        )


def _other_dvc_files(workspace: Path) -> bool:
    """Whether the person has other DVC files beside `data.dvc`, which may track `data/`, too."""
    listed = ask(workspace, "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.dvc", "*dvc.yaml").stdout
    return any(line != DATA_FILE for line in listed.splitlines())


def _patterns(file: Path) -> bool:
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return False
    return any(line.strip() and not line.startswith(b"#") for line in lines)
