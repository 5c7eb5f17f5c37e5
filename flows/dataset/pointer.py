"""Parsing the text of a `data.dvc`, and of the DVC directory object that it names. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from flows.dataset.revisions import DATA_FILE
from flows.errors import AskedWrongly
from flows.workspace import DATA


@dataclass(frozen=True)
class Pointer:
    """The content of a `data.dvc`: the hash of the directory, its number of files, and their size in all."""

    digest: str
    num_files: int
    size_bytes: int


def parse_pointer(text: str, name: str) -> Pointer:
    """The pointer in the text of a `data.dvc`. Raises AskedWrongly if it is damaged, or tracks something else than `data/`."""
    try:
        (out,) = yaml.safe_load(text)["outs"]
        kept = out.get("path", DATA)
        if str(out["md5"]).endswith(".dir") and kept == DATA:
            return Pointer(out["md5"], int(out.get("nfiles", 0)), int(out.get("size", 0)))
        raise AskedWrongly(
            f"{name} keeps {kept!r} for DVC, as {'a folder' if str(out['md5']).endswith('.dir') else 'a file'}, and a workspace "
            f"has its folder {DATA}/ there: give yours another name"
        )
    except AskedWrongly:
        raise
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        pass
    raise AskedWrongly(f"{name} is not a DVC file of one folder (a merge conflict?); restore it with git checkout -- {DATA_FILE}")


def json_listing(text: str) -> Mapping[str, str]:
    """The md5s of the files, by path, in the text of a DVC directory object."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(text)}
