"""The objects behind `data.dvc`, in DVC's cache and remote."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flows.dataset.dvc_calls import opened
from flows.dataset.pointer import Pointer, json_listing, parse_pointer
from flows.dataset.revisions import DATA_FILE, pointer_text
from flows.errors import AskedWrongly, Busy, HeadstartError
from flows.manifest import MASK_TABLE, NAME, parse, parse_masks
from flows.records import SPLITS, Mask, Remote, Sample
from flows.workspace import DATA, find, md5_of

LOG = logging.getLogger(__name__)
# The files that `init_store` makes, and that a workspace commits.
OWN_FILES = (".dvc/config", ".dvc/.gitignore", ".dvcignore")
DVC_IGNORES = "a rule of DVC's own"
_OBJECTS = Path("files") / "md5"
# Up to this size reading every file is faster than importing DVC, which remembers their hashes.
_QUICK_LOOK_BYTES = 2**28


@dataclass(frozen=True)
class Store:
    """A workspace's DVC: `cache` is the folder of files by md5, `remote` that of the remote (None if that is no folder).

    `remote_name` is the default remote, None if there is none, `bucket` where it lies if that is an object store; `remotes` are
    all remotes of the configuration.
    """

    workspace: Path
    cache: Path
    remote: Path | None
    remote_name: str | None = None
    remotes: tuple[str, ...] = ()
    bucket: Remote | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders on this machine that hold files by md5."""
        return (self.cache, self.remote) if self.remote else (self.cache,)

    @property
    def pointer(self) -> Pointer:
        """The content of the workspace's `data.dvc`."""
        return parse_pointer(pointer_text(self.workspace), str(self.workspace / DATA_FILE))

    def add(self) -> None:
        """Bring `data/` into the cache and write `data.dvc`."""
        with opened(self.workspace) as repo:
            # By absolute path: DVC resolves a relative one against the process's folder.
            repo.add(str(self.workspace / DATA))

    def push(self) -> None:
        """Send the objects of `data.dvc` to the remote, unless that is a folder that has them all."""
        digest = self.pointer.digest
        if self.remote and not self._lacks(digest, (self.remote,)):
            return
        with opened(self.workspace) as repo:
            repo.push(targets=[str(self.workspace / DATA_FILE)])

    def pack(self) -> None:
        """Pack the small files of `data.dvc` that are in no pack of an object store yet; what goes wrong is only told.

        Readers on other machines get many at once so, and without packs one by one.
        """
        if self.bucket is None:
            return
        from flows import objects

        digest = self.pointer.digest
        samples = sorted(self.samples(digest), key=lambda sample: SPLITS.index(sample.split))
        digests = dict.fromkeys([*(s.digest for s in samples), *(mask.digest for mask in self.masks(digest).values())])
        files = {digest: path for digest in digests if (path := find(digest, (self.cache,))) is not None}
        try:
            objects.write_packs(objects.Reader(self.bucket), objects.cache_folder() / "packs", files)
        except (HeadstartError, OSError) as error:
            LOG.warning("the new files are on the remote, and could not be packed there as well: %s", error)

    def push_versions(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Send whole versions to the remote; gives the digests of those that the cache has not whole, which stay behind."""
        from dvc.output import HashInfo

        digests = tuple(digests)
        behind = tuple(digest for digest in digests if self._lacks(digest, (self.cache,)))
        with opened(self.workspace) as repo:
            remote, cache = repo.cloud.get_remote_odb(), repo.cache.local
            versions = [HashInfo("md5", digest) for digest in digests if digest not in behind]
            # With the files of each version, which goes last.
            pushed = repo.cloud.transfer(cache, remote, versions, shallow=False, cache_odb=cache)
        if pushed.failed:
            raise HeadstartError(
                f"{len(pushed.failed)} objects could not be pushed to the remote {self.remote_name}; run this again"
            )
        return behind

    def bring(self) -> None:
        """Check out the version of `data.dvc` into `data/`, fetching objects that the cache lacks.

        Raises HeadstartError, with `data/` as it was, if they cannot be fetched.
        """
        digest, target = self.pointer.digest, str(self.workspace / DATA_FILE)
        with opened(self.workspace) as repo:
            if self._lacks(digest, (self.cache,)):
                from dvc.exceptions import DownloadError

                with suppress(DownloadError):
                    repo.fetch(targets=[target])
            # DVC's checkout removes the whole folder if an object is missing, so it must not be started then.
            if self._lacks(digest, (self.cache,)):
                whole = f"data version {digest} is not whole in the DVC cache or on the remote"
                raise HeadstartError(f"{whole}; nothing was changed. Ingest the source that it came from again")
            repo.checkout(targets=[target], force=True)

    def check_layout(self) -> None:
        """Raise AskedWrongly if DVC cannot use the remote, or another DVC file tracks a part of `data/` or a folder around it."""
        data = self.workspace / DATA
        try:
            with opened(self.workspace) as repo:
                repo.cloud.get_remote_odb()
                taken = [out for out in repo.index.outs if _overlap(Path(out.fs_path), data)]
        except Busy:
            raise
        except HeadstartError as error:
            raise AskedWrongly(f"DVC can not keep data in {self.workspace}: {error.__cause__ or error}") from error
        for out in taken:
            if Path(out.stage.path) != self.workspace / DATA_FILE and not Path(out.stage.path).is_relative_to(data):
                raise AskedWrongly(
                    f"{out.stage.relpath} of {self.workspace} keeps {out} already, and a data version is all of {data}: "
                    "give that output another folder"
                )

    def ignored(self, names: Iterable[str]) -> Mapping[str, str]:
        """The files among these, of `data/`, that DVC ignores, each with the pattern that does so and where it stands."""
        data = str(self.workspace / DATA)
        with opened(self.workspace) as repo:
            left_out = [name for name in names if repo.dvcignore.is_ignored_file(f"{data}/{name}")]
            by_name = {name: repo.dvcignore.check_ignore(f"{data}/{name}").pattern_infos for name in left_out}
        return {name: str(patterns[-1]) if patterns else DVC_IGNORES for name, patterns in by_name.items()}

    def is_dirty(self) -> bool:
        """Whether `data/` differs from the version of `data.dvc`."""
        pointer, data = self.workspace / DATA_FILE, self.workspace / DATA
        if not (pointer.exists() and data.exists()):
            return pointer.exists() or data.exists()
        with opened(self.workspace) as repo:
            return bool(repo.status(targets=[str(pointer)]))

    def is_settled(self) -> bool:
        """Whether `data/`, the cache and the remote all hold the version of `data.dvc`; False if only a slow look could tell."""
        pointer = self.pointer
        if pointer.size_bytes > _QUICK_LOOK_BYTES or not self.remote:
            return False
        if self._lacks(pointer.digest, (self.cache,)) or self._lacks(pointer.digest, (self.remote,)):
            return False
        files, data = self.listing(pointer.digest), self.workspace / DATA
        here = {path.relative_to(data).as_posix(): path for path in data.rglob("*") if path.is_file()}
        return here.keys() == files.keys() and all(md5_of(path) == files[name] for name, path in here.items())

    def is_within_reach(self) -> bool:
        """Whether the objects of `data.dvc` are on this machine, or may be on a remote that is no folder."""
        return self.remote is None or find(self.pointer.digest, self.folders) is not None

    def listing(self, digest: str) -> Mapping[str, str]:
        """The md5s of a version's files by path in `data/`. Raises AskedWrongly if the version is not on this machine."""
        return json_listing(self._text(digest, digest))

    def tables(self, digest: str) -> Mapping[str, str]:
        """The md5s of a version's tables of samples and masks by name; empty if the version is not on this machine."""
        files = self.listing(digest) if find(digest, self.folders) else {}
        return {name: files[name] for name in (NAME, MASK_TABLE) if name in files}

    def samples(self, digest: str) -> tuple[Sample, ...]:
        """The samples in a version's manifest. Raises AskedWrongly if the version is not on this machine."""
        md5 = self.listing(digest).get(NAME)
        if md5 is None:
            raise AskedWrongly(f"data version {digest} holds no {NAME}; run `headstart data ingest SOURCE`")
        return parse(self._text(md5, digest, self.workspace / DATA / NAME))

    def masks(self, digest: str) -> Mapping[str, Mask]:
        """The masks of a version by file name; empty if it has none, or an early ingest made it, which did not count pixels."""
        md5 = self.listing(digest).get(MASK_TABLE)
        return {} if md5 is None else parse_masks(self._text(md5, digest, self.workspace / DATA / MASK_TABLE))

    def _text(self, md5: str, version: str, copy: Path | None = None) -> str:
        path = find(md5, self.folders)
        if path is None and copy is not None and copy.exists() and md5_of(copy) == md5:
            path = copy
        if path is None:
            raise AskedWrongly(
                f"the files of data version {version} are not on this machine (looked in {', '.join(map(str, self.folders))}); "
                "run `headstart data ingest SOURCE` with the source they came from, or `headstart data checkout HEAD`"
            )
        return path.read_bytes().decode()

    def _lacks(self, digest: str, folders: tuple[Path, ...]) -> bool:
        path = find(digest, folders)
        return path is None or any(find(md5, folders) is None for md5 in json_listing(path.read_text(encoding="utf-8")).values())


def open_store(workspace: Path) -> Store:
    """The store of a workspace, by its DVC configuration. Raises AskedWrongly if that cannot be read."""
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(workspace / ".dvc"))
    except (ConfigError, UnicodeError) as error:
        raise AskedWrongly(f"the DVC configuration of {workspace} cannot be read: {error}") from error
    cache = Path(config["cache"].get("dir") or workspace / ".dvc" / "cache")
    name, remotes = config["core"].get("remote"), config["remote"]
    if name is not None and name not in remotes:
        raise AskedWrongly(f"the DVC configuration of {workspace} has the default remote {name!r}, which it does not describe")
    described = remotes.get(name, {})
    url = str(described.get("url", "://"))
    folder = None if "://" in url else Path(url) / _OBJECTS
    bucket = Remote(url.rstrip("/"), described.get("endpointurl")) if url.startswith("s3://") else None
    return Store(workspace, cache / _OBJECTS, folder, name, tuple(remotes), bucket)


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
