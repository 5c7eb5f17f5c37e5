"""The splits that a source gives its files, by the names of files and folders; names that leave it open are refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from flows.errors import AskedWrongly
from flows.landing.names import split_at_an_end, split_of, splits_among


def in_split_folders(root: Path, files: Sequence[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The split of every file in a class folder of a split, `{train,val,test}/<class>/*`.

    Raises AskedWrongly if it is unclear which split a folder is, and if a class also has a folder beside the splits.
    """
    splits = splits_among(dict.fromkeys(file.parts[0] for file in files if len(file.parts) > 1))
    found = {file: splits[file.parts[0]] for file in files if len(file.parts) == 3 and file.parts[0] in splits}
    unclear = sorted({file.parts[0] for file, split in found.items() if not split})
    if unclear:
        raise _unclear(root, unclear[0])
    beside = sorted({file.parts[0] for file in files if len(file.parts) == 2} & {file.parts[1] for file in found})
    if beside:
        raise AskedWrongly(
            f"source {str(root)!r} has the class {beside[0]!r} both as a folder of its own and in a split ({', '.join(splits)}); "
            "put every sample into a split, or none. Nothing was changed"
        )
    return found


def by_folder(root: Path, file: PurePosixPath) -> str | None:
    """The split that a folder around a file says, None if none does. Raises AskedWrongly if it is unclear which split it is."""
    said = {part: split for part in file.parts[:-1] if (split := split_of(part)) is not None}
    if said and not any(said.values()):
        raise _unclear(root, next(iter(said)))
    return next(filter(None, said.values()), None)


def _unclear(root: Path, folder: str) -> AskedWrongly:
    return AskedWrongly(
        f"source {str(root)!r}: which split is the folder {folder!r}? Name it train, val or test, or take it out. "
        "Nothing was changed"
    )


def by_file_name(root: Path, files: Sequence[PurePosixPath]) -> dict[PurePosixPath, str | None]:
    """The split of every file that holds many samples, by its own name or that of a folder around it; None for all if none says.

    Of several files the first or the last word of a name may say it: emerging.dev, wnut17train. Raises AskedWrongly if some say
    a split and another does not, since its samples would be mixed with those of the others.
    """
    names = {file: (file.stem, *reversed(file.parts[:-1])) for file in files}
    said = splits_among(dict.fromkeys(name for file in files for name in names[file]))
    splits = {file: next((said[name] for name in names[file] if name in said), None) for file in files}
    if len(files) > 1:
        halves = _with_test_halves(files)
        ends = {file: split_at_an_end(file.stem, halves=file.parent in halves) for file in files}
        splits = {file: ends[file] if split is None else split for file, split in splits.items()}
        # A name that says some split, and not which, first: it is refused in any company.
        unclear = next((file for said in ("", None) for file, split in splits.items() if split == said), None)
        clear = next((file for file, split in splits.items() if split), None)
        if unclear and (clear or splits[unclear] == ""):
            others = f" Others say theirs, as {str(clear)!r} does." if clear else ""
            raise AskedWrongly(
                f"source {str(root)!r}: which split is the file {str(unclear)!r}?{others} Let its name begin or end with train, "
                "val or test, or take it out. Nothing was changed"
            )
    return {file: split or None for file, split in splits.items()}


def _with_test_halves(files: Iterable[PurePosixPath]) -> set[PurePosixPath]:
    """The folders with both a file `testa` and one `testb`, which in CoNLL-2003 are validation and test."""
    ends = {(file.parent, half) for file in files for half in ("testa", "testb") if file.stem.endswith(half)}
    return {folder for folder, half in ends if {(folder, "testa"), (folder, "testb")} <= ends}
