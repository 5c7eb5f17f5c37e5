"""Publishing a bundle where consumers reach it without MLflow: below an S3 prefix or a folder, a pointer written last."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows import pulling
from flows.errors import AskedWrongly
from flows.publishing.places import BundlePlace, open_place
from flows.publishing.pointer import FORMAT, POINTER, Pointer, Stored, read_pointer

__all__ = ["POINTER", "Pointer", "Published", "check_signing", "publish", "sign"]

# Of which a pull from signed addresses knows that a newer one may take their place.
MAX_EARLIER = 100


@dataclass(frozen=True)
class Published:
    """What is published at an address: `s3://bucket/prefix`, a folder, or the path of a file of signed addresses.

    Raises AskedWrongly on an address that is none of them.
    """

    address: str

    @property
    def _place(self) -> BundlePlace:
        return open_place(self.address)

    def pointer(self) -> Pointer:
        """What is published now.

        Raises AskedWrongly if nothing is, or the pointer is none that Headstart wrote, Unreachable if no server answers.
        """
        found = self._found()
        if found is None:
            raise AskedWrongly(
                f"nothing is published at {self.address}: no {POINTER} lies there; publish with `headstart models publish`"
            )
        return found

    def pull(self, pointer: Pointer, dest: Path) -> None:
        """Make the folder `dest` the published bundle. Raises as `flows.pulling.bring` does."""
        place = self._place

        def is_ours(digest: str) -> bool:
            return digest in pointer.earlier or place.read(f"{digest}/SHA256SUMS") is not None

        pulling.bring(_Files(place, pointer), dest, name=pointer.name, digest=pointer.digest, is_ours=is_ours)

    def _found(self) -> Pointer | None:
        content = self._place.read(POINTER)
        return None if content is None else read_pointer(content, f"{self.address}/{POINTER}")


@dataclass(frozen=True)
class _Files:
    place: BundlePlace
    pointer: Pointer

    def fetch(self, name: str, file: Path) -> None:
        self.place.fetch(f"{self.pointer.digest}/{name}", file, self.pointer.files[name].size)


def publish(bundle: Path, address: str, *, name: str, version: str) -> tuple[Pointer, bool]:
    """Publish a bundle, a version of model `name`; gives the pointer, and whether anything had to be written.

    The files go below the bundle's digest, the pointer is written last and whole: readers find the earlier bundle or this one,
    and a publishing that was cut short leaves the earlier. Raises AskedWrongly if another model is published there, or it
    cannot be written.
    """
    from heads import bundle as bundles

    published = Published(address)
    earlier = published._found()
    if earlier and earlier.name != name:
        raise AskedWrongly(f"{address} publishes {earlier.name!r} (version {earlier.version}); give {name!r} another prefix")
    bundles.verify(bundle)
    digest = bundles.digest(bundle)
    if earlier and (earlier.digest, earlier.version) == (digest, version):
        return earlier, False
    place = published._place
    files = {file: bundle / file for file in bundles.names_of(bundle)}
    for file, path in files.items():
        place.put(f"{digest}/{file}", path)
    stored = {file: Stored(pulling.digest_of_file(path), path.stat().st_size) for file, path in files.items()}
    created = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
    before = (earlier.digest, *earlier.earlier) if earlier else ()
    others = tuple(dict.fromkeys(known for known in before if known != digest))[:MAX_EARLIER]
    pointer = Pointer(FORMAT, name, version, digest, stored, created, others)
    place.write(POINTER, (json.dumps(asdict(pointer), indent=2) + "\n").encode())
    return pointer, True


def check_signing(address: str, seconds: int) -> None:
    """Raise AskedWrongly if the place of an address is no bucket, or S3 signs nothing for so many seconds."""
    open_place(address).sign(POINTER, seconds)


def sign(address: str, pointer: Pointer, seconds: int) -> Mapping[str, str]:
    """An address for each file of the bundle, and for the pointer, by which anyone may read it for so many seconds.

    Raises as `check_signing` does.
    """
    place = open_place(address)
    names = {file: f"{pointer.digest}/{file}" for file in pointer.files}
    return {file: place.sign(key, seconds) for file, key in ({POINTER: POINTER} | names).items()}
