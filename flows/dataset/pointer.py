"""What the text of a `data.dvc` says, and that of the directory object that it names. Pure."""

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
    """What a `data.dvc` points at: the directory hash, how many files it has, and their bytes together."""

    digest: str
    num_files: int
    size_bytes: int


def parse_pointer(text: str, name: str) -> Pointer:
    """What the text of a `data.dvc` points at. Raises AskedWrongly if it is damaged, or keeps something else than `data/`."""
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
    """The md5 by path in the text of a DVC directory object."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(text)}
