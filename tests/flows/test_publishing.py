"""Bundles that are published in a bucket or a folder, pulled from there, and what is left when either is cut short."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from flows import publishing, pulling
from flows.cli import screen
from flows.errors import AskedWrongly, Busy, Unreachable
from flows.publishing import POINTER, Published
from flows.pulling import InTheWay
from flows.stages import delivery
from flows.stages.delivery import Offer
from heads import bundle as bundles
from heads.data.image_transforms import preprocess_for
from heads.errors import BundleError
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from tests import object_store

ADDRESS = "s3://pets/models/digits"
VARIANT = Variant(backbone="squeezenet1_1", heads=(Head(target="kind"),), fit=Fit(image_size_px=64))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of a model."""
    folder = tmp_path_factory.mktemp("versions")
    return made(folder / "1", ("cat", "dog")), made(folder / "2", ("cat", "dog", "elk"))


def made(folder: Path, classes: tuple[str, ...]) -> Path:
    model, preprocess = build_model(VARIANT, {"kind": classes}, None), preprocess_for("squeezenet1_1", 64)
    return bundles.save(folder, model=model, variant=VARIANT, classes={"kind": classes}, preprocess=preprocess, facts={})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[object_store.Bucket]]:
    with object_store.serving(monkeypatch) as handler:
        yield handler


@pytest.fixture(params=["bucket", "folder"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        request.getfixturevalue("bucket")
        return ADDRESS
    return str(tmp_path / "published")


def pull(address: str, dest: Path) -> None:
    place = Published(address)
    place.pull(place.pointer(), dest)


def holds(dest: Path, bundle: Path) -> bool:
    bundles.verify(dest)
    return bundles.digest(dest) == bundles.digest(bundle)


def test_what_is_published_is_pulled_and_the_newer_takes_its_place(
    address: str, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    dest = tmp_path / "live" / "model"
    with pytest.raises(AskedWrongly, match=r"nothing is published at .*headstart models publish"):
        pull(address, dest)
    for number, bundle in enumerate(versions, 1):
        pointer, is_new = publishing.publish(bundle, address, name="digits", version=str(number))
        assert (is_new, pointer.version, pointer.digest) == (True, str(number), bundles.digest(bundle))
        assert {name: stored.size for name, stored in pointer.files.items()} == {
            f.name: f.stat().st_size for f in bundle.iterdir()
        }
        pull(address, dest)
        assert holds(dest, bundle)
        assert [path.name for path in dest.parent.iterdir()] == ["model"], "nothing of the pull is left beside it"
    inode = dest.stat().st_ino
    pull(address, dest)
    assert dest.stat().st_ino == inode, "what is there already is not fetched again"
    with pytest.raises(AskedWrongly, match=r"publishes 'digits' \(version 2\)"):
        publishing.publish(versions[0], address, name="pets", version="1")


def test_publishing_the_same_version_again_writes_nothing(bucket: type[object_store.Bucket], versions: tuple[Path, Path]) -> None:
    for is_first in (True, False):
        bucket.asked.clear()
        assert publishing.publish(versions[0], ADDRESS, name="digits", version="1")[1] is is_first
        written = [key for method, key, _ in bucket.asked if method == "PUT"]
        assert (written[-1:] == [f"models/digits/{POINTER}"]) is is_first, "the pointer is written last"
        assert len(written) == (len(bundles.FILES) + 2) * is_first


def test_an_upload_that_is_cut_short_leaves_the_earlier_version(
    bucket: type[object_store.Bucket], versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing.publish(versions[0], ADDRESS, name="digits", version="1")
    take = bucket.do_PUT
    for num_taken in range(len(bundles.FILES) + 2):
        left = num_taken

        def cut(handler: object_store.Bucket) -> None:
            nonlocal left
            bucket.refused = left <= 0
            left -= 1
            take(handler)
            bucket.refused = False

        monkeypatch.setattr(bucket, "do_PUT", cut)
        with pytest.raises(AskedWrongly, match=r"cannot be written: .*AccessDenied"):
            publishing.publish(versions[1], ADDRESS, name="digits", version="2")
        pull(ADDRESS, tmp_path / f"model{num_taken}")
        assert holds(tmp_path / f"model{num_taken}", versions[0])
    monkeypatch.setattr(bucket, "do_PUT", take)
    publishing.publish(versions[1], ADDRESS, name="digits", version="2")
    pull(ADDRESS, tmp_path / "model0")
    assert holds(tmp_path / "model0", versions[1])


def test_signed_addresses_are_read_without_credentials(bucket: type[object_store.Bucket], versions: tuple[Path, Path]) -> None:
    pointer, _ = publishing.publish(versions[0], ADDRESS, name="digits", version="1")
    signed = publishing.sign(ADDRESS, pointer, 600)
    assert set(signed) == {POINTER, *pointer.files}
    for name, where in signed.items():
        assert "X-Amz-Expires=600" in where
        assert "X-Amz-Signature=" in where
        with urllib.request.urlopen(where) as answer:
            content = answer.read()
        assert name == POINTER or content == (versions[0] / name).read_bytes()
    for seconds in (0, 604801):
        with pytest.raises(AskedWrongly, match="1 to 604800 seconds"):
            publishing.check_signing(ADDRESS, seconds)
    with pytest.raises(AskedWrongly, match="only addresses in a bucket can be signed"):
        publishing.check_signing("folder", 60)


def test_a_half_downloaded_pull_goes_on_where_it_was(
    bucket: type[object_store.Bucket], versions: tuple[Path, Path], tmp_path: Path
) -> None:
    publishing.publish(versions[0], ADDRESS, name="digits", version="1")
    publishing.publish(versions[1], ADDRESS, name="digits", version="2")
    weights = (versions[1] / "weights.safetensors").read_bytes()
    sums = bundles.contents.parse_sums((versions[1] / "SHA256SUMS").read_bytes(), tmp_path)
    half = tmp_path / ".model.pull" / sums["weights.safetensors"]
    for begun, fetched in (
        (weights[:1_000_000], f"bytes=1000000-{len(weights) - 1}"),
        (b"?" * 1000, f"bytes=0-{len(weights) - 1}"),
    ):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        half.parent.mkdir()
        half.write_bytes(begun)
        (half.parent / "of another version").write_bytes(b"x")
        bucket.asked.clear()
        pull(ADDRESS, tmp_path / "model")
        assert holds(tmp_path / "model", versions[1])
        assert [part for _, key, part in bucket.asked if key.endswith("weights.safetensors")][-1] == fetched
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_that_do_not_fit_their_digests_are_not_pulled_and_nothing_is_kept(
    address: str, bucket: type[object_store.Bucket], versions: tuple[Path, Path], tmp_path: Path
) -> None:
    dest = tmp_path / "dest" / "model"
    publishing.publish(versions[0], address, name="digits", version="1")
    pull(address, dest)
    pointer, _ = publishing.publish(versions[1], address, name="digits", version="2")
    place = publishing.open_place(address)
    for name in (*bundles.FILES, "SHA256SUMS"):
        changed = bytearray((versions[1] / name).read_bytes())
        changed[-2] ^= 1
        place.write(f"{pointer.digest}/{name}", bytes(changed))
        with pytest.raises(BundleError, match=name):
            pull(address, dest)
        assert holds(dest, versions[0])
        assert [path.name for path in dest.parent.iterdir()] == ["model"]
        place.put(f"{pointer.digest}/{name}", versions[1] / name)
    pull(address, dest)
    assert holds(dest, versions[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "has format 2"),
        ({"digest": "../../etc"}, "a digest is 64 hex digits"),
        ({"files": {"../card.md": {"sha256": "0" * 64, "size": 1}}}, "not those of a bundle"),
        ({"files": []}, "no pointer that Headstart wrote"),
        ({"name": "x" * 70_000}, "longer than 65536 bytes"),
        (None, "no pointer that Headstart wrote"),
    ],
)
def test_a_pointer_that_headstart_did_not_write_is_refused(
    change: dict[str, object] | None, words: str, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    publishing.publish(versions[0], str(tmp_path / "place"), name="digits", version="1")
    file = tmp_path / "place" / POINTER
    file.write_text("[" * 10_000 if change is None else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(AskedWrongly, match=words):
        pull(str(tmp_path / "place"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Killed(BaseException):
    """As a kill, in this process."""


@dataclass
class Cut:
    """The files of a bundle, of which the nth is cut in its middle."""

    path: Path
    num_left: int
    fetched: list[str] = field(default_factory=list)

    def fetch(self, name: str, file: Path) -> None:
        self.fetched.append(name)
        if self.num_left == 0:
            content = (self.path / name).read_bytes()
            file.write_bytes(content[: len(content) // 2])
            raise Killed
        self.num_left -= 1
        pulling.Folder(self.path).fetch(name, file)


def bring(files: pulling.Files, dest: Path, bundle: Path) -> None:
    pulling.bring(files, dest, name="digits", digest=bundles.digest(bundle), is_ours=lambda digest: True)


def test_cut_at_every_file_the_old_bundle_stays_and_the_next_pull_goes_on(versions: tuple[Path, Path], tmp_path: Path) -> None:
    dest = tmp_path / "model"
    bring(pulling.Folder(versions[0]), dest, versions[0])
    for num_whole in range(len(bundles.FILES) + 1):
        files = Cut(versions[1], min(num_whole, 2))
        with pytest.raises(Killed):
            bring(files, dest, versions[1])
        assert holds(dest, versions[0])
        assert len(files.fetched) == min(num_whole, 2) + 1, "files that came whole are not fetched again"
    rest = Cut(versions[1], 9)
    bring(rest, dest, versions[1])
    assert holds(dest, versions[1])
    assert len(rest.fetched) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_system_that_exchanges_nothing_in_one_step_gets_the_old_bundle_back(
    versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "model"
    bring(pulling.Folder(versions[0]), dest, versions[0])
    rename = os.rename

    def killed(source: Path, goal: Path) -> None:
        if Path(goal) == dest:
            raise Killed
        rename(source, goal)

    with monkeypatch.context() as patch:
        patch.setattr(pulling.placing, "_exchange", lambda one, other: False)
        patch.setattr(pulling.placing.os, "rename", killed)
        with pytest.raises(Killed):
            bring(pulling.Folder(versions[1]), dest, versions[1])
    assert not dest.exists()
    with pytest.raises(Killed):
        bring(Cut(versions[1], 0), dest, versions[1])
    assert holds(dest, versions[0])


KILLED = """
import sys, time
from pathlib import Path
from flows import pulling
from heads import bundle

class Slow(pulling.Folder):
    def fetch(self, name, file):
        if name.endswith("safetensors"):
            file.write_bytes((self.path / name).read_bytes()[:500_000])
            print("half", flush=True)
            time.sleep(600)
        super().fetch(name, file)

source = Path(sys.argv[1])
pulling.bring(Slow(source), Path(sys.argv[2]), name="digits", digest=bundle.digest(source), is_ours=lambda digest: True)
"""


def test_killed_in_the_middle_the_old_bundle_stays_and_another_pull_goes_on(versions: tuple[Path, Path], tmp_path: Path) -> None:
    dest = tmp_path / "model"
    bring(pulling.Folder(versions[0]), dest, versions[0])
    command = [sys.executable, "-c", KILLED, str(versions[1]), str(dest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            with pytest.raises(Busy, match=f"another pull into {dest} runs"):
                bring(pulling.Folder(versions[1]), dest, versions[1])
        finally:
            process.send_signal(signal.SIGKILL)
    assert holds(dest, versions[0])
    files = Cut(versions[1], 9)
    bring(files, dest, versions[1])
    assert holds(dest, versions[1])
    assert "weights.safetensors" in files.fetched
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class Offers:
    """An origin whose answers are given: a version, or an error."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)

    def pull_if_new(self, dest: Path, held: Offer | None) -> Offer:
        if not self.answers:
            raise KeyboardInterrupt
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Offer("digits", answer, None)


def followed(*answers: str | Exception) -> list[str]:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        delivery.follow(Offers(*answers), Path("model"), 0.001, said.append)
    return said


def test_who_follows_is_told_once_of_what_does_not_answer_and_of_every_new_version() -> None:
    down = Unreachable("no answer")
    waits = "no answer\nmodel stays as it is; asked again every 0.001 s"
    assert followed("1", "1", "2") == ["model holds digits version 1", "model holds digits version 2"]
    assert followed(down, down, "1") == [waits, "model holds digits version 1"]
    assert followed("1", down, down, OSError("disk full"), "1", down, "2") == [
        "model holds digits version 1",
        waits,
        "answered again: model still holds digits version 1",
        waits,
        "model holds digits version 2",
    ]
    assert followed("1", BundleError("damaged"), "2")[1].startswith("damaged\nmodel stays as it is")
    with pytest.raises(AskedWrongly, match="no such model"):
        delivery.follow(Offers(AskedWrongly("no such model")), Path("model"), 0.001, print)
    with pytest.raises(InTheWay):
        delivery.follow(Offers("1", InTheWay("yours")), Path("model"), 0.001, lambda text: None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_line_is_heeded_after_it_and_the_line_is_printed_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def flush(self) -> None:
            os.kill(os.getpid(), number)
            super().flush()

    stream = Interrupted()
    monkeypatch.setattr(screen, "err", Console(file=stream))
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            screen.note_whole("model holds digits version 1")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    monkeypatch.setattr(Interrupted, "flush", io.StringIO.flush)
    screen.note("stopped")
    assert stream.getvalue() == "model holds digits version 1\nstopped\n"


def test_the_command_follows_a_bucket_until_it_is_stopped(
    bucket: type[object_store.Bucket], versions: tuple[Path, Path], tmp_path: Path
) -> None:
    publishing.publish(versions[0], ADDRESS, name="digits", version="1")
    dest = tmp_path / "model"
    command = [sys.executable, "-c", "from flows.cli import main; main()", "models", "pull", ADDRESS, str(dest), "--watch", "1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "AWS_MAX_ATTEMPTS": "1"}
    ) as process:
        lines = iter(process.stderr or ())
        assert next(lines) == f"{dest} holds digits version 1\n"
        publishing.publish(versions[1], ADDRESS, name="digits", version="2")
        assert next(lines) == f"{dest} holds digits version 2\n"
        bucket.refused = True
        assert "AccessDenied" in next(lines)
        assert next(lines) == f"{dest} stays as it is; asked again every 1 s\n"
        assert holds(dest, versions[1])
        bucket.refused = False
        assert next(lines) == f"answered again: {dest} still holds digits version 2\n"
        process.send_signal(signal.SIGTERM)
        assert list(lines) == [f"stopped; {dest} stays as it is\n"]
        assert process.wait(30) == 0
    assert holds(dest, versions[1])
