"""Bundles made to harm whoever loads them: each is refused with words, before its content is run, read whole or allocated."""

import hashlib
import json
import os
import pickle
import resource
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from flows.pulling import placing
from heads import bundle
from heads.bundle import contents
from heads.data.image_transforms import preprocess_for
from heads.errors import BundleError
from heads.model.model import build_model, build_outline
from heads.spec import Fit, Head, Variant

VARIANT = Variant(backbone="squeezenet1_1", heads=(Head(target="kind"),), fit=Fit(image_size_px=64))
CLASSES = {"kind": ("cat", "dog")}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "bundle"
    model, preprocess = build_model(VARIANT, CLASSES, None), preprocess_for("squeezenet1_1", 64)
    return bundle.save(folder, model=model, variant=VARIANT, classes=CLASSES, preprocess=preprocess, facts={})


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def seal(folder: Path) -> None:
    """Give the folder a SHA256SUMS that its files fit, as whoever made it would."""
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(bundle.FILES))
    (folder / "SHA256SUMS").write_text("".join(sums))


def planted(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    seal(folder)
    return folder


class Bomb:
    """What, unpickled, would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_no_pickle_and_no_archive_is_ever_opened(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "unpickled"
    (copy / "model.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(BundleError, match=r"holds model\.pkl, which the bundle does not list"):
        bundle.load(copy)
    (copy / "model.pkl").unlink()
    torch.save(Bomb(mark), tmp_path / "saved")
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("variant.json", b"\0" * 2**24)
    mark.mkdir()
    with pytest.raises(FileExistsError):  # the bomb does go off where it is unpickled
        pickle.loads(pickle.dumps(Bomb(mark)))
    mark.rmdir()
    size = (copy / "weights.safetensors").stat().st_size
    for content in (pickle.dumps(Bomb(mark)), (tmp_path / "saved").read_bytes(), (tmp_path / "zip").read_bytes()):
        for padded in (content, content.ljust(size, b"\0")):
            with pytest.raises(BundleError, match="no bundle that Headstart wrote"):
                bundle.load(planted(copy, "weights.safetensors", padded))
    assert not mark.exists()


def test_links_pipes_and_folders_are_no_files_of_a_bundle(copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    for name in (*bundle.FILES, "SHA256SUMS"):
        content = (copy / name).read_bytes()
        secret.write_bytes(content)
        for make in (lambda path: path.symlink_to(secret), os.mkfifo, Path.mkdir):
            (copy / name).unlink()
            make(copy / name)
            for call in (bundle.load, bundle.verify):
                with pytest.raises(BundleError, match=f"{name} is (a link|no plain file)"):
                    call(copy)
            (copy / name).rmdir() if (copy / name).is_dir() else (copy / name).unlink()
            (copy / name).write_bytes(content)
    (tmp_path / "current").symlink_to(copy)
    assert bundle.load(tmp_path / "current").variant == VARIANT, "the folder itself may be a link"


@pytest.mark.parametrize(
    "line",
    [
        "{0}  ../../secret",
        "{0}  /etc/passwd",
        "{0}  card.md/../card.md",
        "{0} *card.md",
        "{1}  card.md",
        "{0}  card.md\n{0}  card.md",
    ],
)
def test_a_list_of_digests_with_another_line_than_a_files_is_refused(copy: Path, line: str) -> None:
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    assert lines[0].endswith("  card.md")
    stated = lines[0][:64]
    (copy / "SHA256SUMS").write_text("\n".join([line.format(stated, stated.upper()), *lines[1:]]) + "\n")
    with pytest.raises(BundleError, match="SHA256SUMS lists"):
        bundle.load(copy)


@pytest.mark.parametrize("name", ["SHA256SUMS", *contents.TEXTS])
def test_a_huge_text_is_refused_and_not_read(copy: Path, name: str) -> None:
    os.truncate(copy / name, 2**40)
    for call in (bundle.load, bundle.verify):
        with pytest.raises(BundleError, match=f"{name} is longer than the"):
            call(copy)


def test_weights_of_another_size_than_the_variants_are_refused_and_not_read(copy: Path) -> None:
    os.truncate(copy / "weights.safetensors", 2**40)
    with pytest.raises(BundleError, match=r"weights\.safetensors has 1099511627776 bytes, and those of its variant have 2"):
        bundle.load(copy)
    with pytest.raises(BundleError, match="longer than"):
        bundle.verify(copy)


def test_a_variant_that_asks_for_much_memory_gets_none_without_as_many_weights(copy: Path) -> None:
    greedy = VARIANT.model_copy(
        update={"heads": (Head(target="kind", design="mlp"),), "fit": Fit(image_size_px=64, mlp_depth=8, mlp_width=16384)}
    )
    needed = sum(tensor.numel() * 4 for tensor in build_outline(greedy, CLASSES).state_dict().values())
    assert needed > 5e9
    description = json.loads((copy / "variant.json").read_text())
    described = json.dumps({**description, "variant": greedy.model_dump(mode="json")}).encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=f"those of its variant have {needed} to"):
        bundle.load(planted(copy, "variant.json", described))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5e5, "kilobytes"


def lying(content: bytes, kind: str) -> bytes:
    """The weights with a header that says what is not so, as long as they were."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind == "length":
        return (2**62).to_bytes(8, "little") + content[8:]
    if kind == "deep":
        made = b"[" * length
    else:
        first = next(name for name in header if name != "__metadata__")
        last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
        if kind == "beyond":
            header[last]["data_offsets"][1] += 2**40
        elif kind == "shape":
            header[first]["shape"] = [2**62, 2**62]
        elif kind == "overlap":
            header[first]["data_offsets"] = header[last]["data_offsets"]
        elif kind == "name":
            header["other"] = header.pop(first)
        made = json.dumps(header, separators=(",", ":")).encode()
    return len(made).to_bytes(8, "little") + made + data


@pytest.mark.parametrize("kind", ["length", "deep", "beyond", "shape", "overlap", "name"])
def test_a_lying_header_of_weights_is_refused(copy: Path, kind: str) -> None:
    content = lying((copy / "weights.safetensors").read_bytes(), kind)
    with pytest.raises(BundleError, match="no bundle that Headstart wrote"):
        bundle.load(planted(copy, "weights.safetensors", content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.index_fill(0, torch.tensor(0), float("nan")), "no finite numbers"),
        (lambda tensor: tensor.index_fill(0, torch.tensor(0), float("-inf")), "no finite numbers"),
        (lambda tensor: tensor.view(torch.int32), "is torch.int32"),
        (lambda tensor: tensor.reshape(-1), "and its variant's is torch.float32"),
    ],
)
def test_weights_of_another_kind_or_no_numbers_are_refused(
    copy: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    state = safetensors.torch.load_file(copy / "weights.safetensors")
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[name] = change(state[name]).contiguous()
    with pytest.raises(BundleError, match=words):
        bundle.load(planted(copy, "weights.safetensors", safetensors.torch.save(state)))


@pytest.mark.parametrize("name", ["variant.json", "classes.json", "preprocess.json"])
def test_deep_json_is_refused(copy: Path, name: str) -> None:
    for content in (b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**6):
        with pytest.raises(BundleError, match="no bundle that Headstart wrote") as refused:
            bundle.load(planted(copy, name, content))
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("names", [["cat", "cat"], ["cat", 3], ["cat", ["dog"]], "cd", {"cat": 1, "dog": 2}])
def test_classes_that_are_no_distinct_names_are_refused(copy: Path, names: object) -> None:
    with pytest.raises(BundleError, match="the classes of 'kind' are no list of distinct names"):
        bundle.load(planted(copy, "classes.json", json.dumps({"kind": names}).encode()))


@pytest.mark.parametrize(
    "temperature", [0, -1.0, float("nan"), float("inf"), "1", [2.0], True, 10**400], ids=lambda value: str(value)[:9]
)
def test_temperatures_that_are_no_positive_numbers_are_refused(copy: Path, temperature: object) -> None:
    description = json.loads((copy / "variant.json").read_text()) | {"temperatures": {"kind": temperature}}
    with pytest.raises(BundleError, match="no bundle that Headstart wrote"):
        bundle.load(planted(copy, "variant.json", json.dumps(description).encode()))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("resize_px", 10**9, "resize_px 1000000000 is too large"),
        ("image_size_px", 10**9, "must be from 1 to resize_px"),
        ("mean", [float("nan"), 0.5, 0.5], "three finite numbers"),
        ("std", [float("inf"), 0.5, 0.5], "three finite numbers"),
        ("image_size_px", float("inf"), "OverflowError"),
    ],
)
def test_a_preprocessing_that_would_fill_the_memory_is_refused(copy: Path, field: str, value: object, words: str) -> None:
    stated = json.loads((copy / "preprocess.json").read_text()) | {field: value}
    with pytest.raises(BundleError, match=words):
        bundle.load(planted(copy, "preprocess.json", json.dumps(stated).encode()))


def test_a_reader_sees_a_whole_bundle_while_the_folder_is_exchanged(original: Path, tmp_path: Path) -> None:
    dest, over = tmp_path / "dest", threading.Event()
    shutil.copytree(original, dest)
    exchanged = 0

    def exchange() -> None:
        nonlocal exchanged
        while not over.is_set():
            arrived = Path(shutil.copytree(original, tmp_path / "arrived"))
            planted(arrived, "card.md", str(exchanged).encode())
            placing.put(arrived, dest)
            shutil.rmtree(arrived)
            exchanged += 1

    writer = threading.Thread(target=exchange)
    writer.start()
    try:
        for _ in range(60):
            bundle.verify(dest)
    finally:
        over.set()
        writer.join()
    assert exchanged > 10
    assert np.isfinite(bundle.load(dest).predict([np.zeros((9, 9, 3), np.uint8)])[0]["kind"].probability)
