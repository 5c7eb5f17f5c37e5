"""Models on their way to consumers: pulled once or followed, from the registry or from where they are published; published."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flows import publishing, temporary_folders
from flows.errors import AskedWrongly, HeadstartError, Unreachable
from flows.publishing import Pointer, Published
from flows.pulling import InTheWay
from flows.settings import Settings
from flows.stages.session import open_registry
from flows.words import Say
from heads.errors import HeadsError


@dataclass(frozen=True)
class Offer:
    """A version of a model that may be pulled; its bundle's `digest` is None if it is not known before."""

    name: str
    version: str
    digest: str | None


class BundleSource(Protocol):
    """Where one model is pulled from."""

    def pull_if_new(self, dest: Path, held: Offer | None) -> Offer:
        """The version that is on offer now, put into the folder `dest` unless it is what was pulled before."""
        ...


@dataclass(frozen=True)
class _Registered:
    settings: Settings
    name: str
    which: str

    def pull_if_new(self, dest: Path, held: Offer | None) -> Offer:
        registry = open_registry(self.settings)
        version = registry.find(self.name, self.which)
        if held is None or held.version != version.version:
            registry.pull(self.name, version.version, dest)
        return Offer(version.name, version.version, None)


@dataclass(frozen=True)
class _Published:
    place: Published

    def pull_if_new(self, dest: Path, held: Offer | None) -> Offer:
        pointer = self.place.pointer()
        if held is None or held.digest != pointer.digest:
            self.place.pull(pointer, dest)
        return Offer(pointer.name, pointer.version, pointer.digest)


def open_origin(settings: Settings, model: str) -> BundleSource:
    """The origin that is written as NAME@WHICH (in the registry), `s3://bucket/prefix`, or a path with a slash.

    The path is that of a folder, or of a file of signed addresses. Raises AskedWrongly on a web address.
    """
    if model.startswith(("http://", "https://")):
        raise AskedWrongly(
            "a web address is one file, and a bundle has several: keep all lines that `headstart models publish --expires` "
            "prints in a file, and name its path, such as ./pets.signed"
        )
    # A name has no slash; a path that has an @ in it has to be there, so that a mistyped name is called one.
    if model.startswith("s3://") or model in (".", "..") or ("/" in model and ("@" not in model or Path(model).exists())):
        return _Published(Published(model))
    name, _, which = model.partition("@")
    return _Registered(settings, name, which or "champion")


def follow(origin: BundleSource, dest: Path, seconds: float, say: Say) -> None:
    """Keep the folder `dest` at the version that is on offer, asking every so many seconds; ends by an exception alone.

    While nothing answers, or what is on offer is damaged, `dest` stays as it is, which is said once. Raises InTheWay if `dest`
    holds anything else, and what was asked wrongly at the first time.
    """
    held: Offer | None = None
    failing = False
    while True:
        try:
            offer = origin.pull_if_new(dest, held)
        except InTheWay:
            raise
        except (HeadstartError, HeadsError, OSError) as error:
            if held is None and not isinstance(error, Unreachable):
                raise
            if not failing:
                say(f"{error}\n{dest} stays as it is; asked again every {seconds:g} s")
            failing = True
        else:
            if offer != held:
                say(f"{dest} holds {offer.name} version {offer.version}")
            elif failing:
                say(f"answered again: {dest} still holds {offer.name} version {offer.version}")
            held, failing = offer, False
        time.sleep(seconds)


def publish(settings: Settings, model: str, address: str) -> tuple[Pointer, bool]:
    """Publish the version of NAME@WHICH at an address; gives the pointer, and whether anything had to be written."""
    name, _, which = model.partition("@")
    temporary_folders.sweep()
    with temporary_folders.scratch("publish") as made:
        version = open_registry(settings).pull(name, which or "champion", made / "bundle")
        return publishing.publish(made / "bundle", address, name=name, version=version.version)
