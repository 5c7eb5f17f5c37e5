"""Images prepared in batches are those prepared one at a time: in training, extraction, prediction and an exported program."""

import copy
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from heads.data import image_feed
from heads.data.device_images import prepare_images
from heads.data.image_dataset import ImageDataset
from heads.data.image_feed import ImageFeed
from heads.data.image_transforms import ImagePreprocess, crop_centre, normalise, preprocess_for, resize, resized_size
from heads.data.loading import SampleLoader
from heads.data.masks import Masks
from heads.data.pixels import decode_pixels
from heads.data.readers import run_jobs
from heads.errors import ImageError
from heads.features import FeatureStore
from heads.model.model import build_backbone
from heads.phases import Tap
from heads.spec import Fit, Head, Variant
from heads.trunks import extraction, shards
from heads.trunks.trunk import trunk_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
CPU = torch.device("cpu")
SIZES = ((61, 83), (83, 61), (48, 48), (37, 150), (201, 199), (3, 90), (90, 1), (400, 300), (1, 1), (64, 512))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth colours under a little noise, of odd sizes."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        smooth = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(smooth).astype(int) + random.integers(-20, 20, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def masks_of(files: Sequence[Path], folder: Path) -> Masks:
    """A mask of three classes for every image but the first."""
    for number, file in enumerate(files[1:], start=1):
        grey = np.asarray(Image.open(file).convert("L"))
        Image.fromarray(grey // 86).save(folder / f"{number}-mask.png")
    return Masks([None, *(folder / f"{number}-mask.png" for number in range(1, len(files)))], {0: 0, 1: 1, 2: 2})


def differing(ours: Tensor, theirs: Tensor, preprocess: ImagePreprocess) -> tuple[float, float]:
    """The share of values that differ by more than a hundredth of a grey level, and the most by which they do, in levels."""
    gap = (ours - theirs).abs() * 255 * torch.tensor(preprocess.std)[None, :, None, None]
    return (gap > 0.01).float().mean().item(), gap.max().item()


def both_ways(images: ImageDataset, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The images in batches by a feed, and one at a time."""
    feed = ImageFeed(images, CPU, kept_bytes=0)
    inputs, labels = feed.finish(feed.collate([feed[number] for number in numbers]))
    alone = [images[number] for number in numbers]
    assert all(torch.equal(labels[target][row], item[1][target]) for target in labels for row, item in enumerate(alone))
    assert isinstance(inputs.features, Tensor)
    return inputs.features, torch.stack([image for image, _, _ in alone])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("augment", ["none", "light", "medium", "strong"])
@pytest.mark.parametrize("preprocess", [preprocess_for("mobilenet_v2", 96), preprocess_for("swin_t", 64, whole=True)])
def test_batches_hold_what_single_images_do_and_masks_the_same_values(
    files: list[Path], tmp_path: Path, preprocess: ImagePreprocess, augment: str, flip: bool
) -> None:
    labels = {"kind": list(range(len(files)))}
    masks = {"mask": masks_of(files, tmp_path)}
    images = ImageDataset(files, labels, preprocess, augment, seed=3, flip=flip, masks=masks)  # type: ignore[arg-type]
    for epoch in range(2):
        images.set_epoch(epoch)
        share, most = differing(*both_ways(images, range(len(files))), preprocess)
        # Bicubic sums of tiny images blown up often end on a half, and a window spreads what is rounded otherwise.
        assert share <= (1e-4 if preprocess.interpolation == "bilinear" else 5e-4)
        # A grey level before it is recoloured, which at most trebles it.
        assert most < (1.01 if augment == "none" else 3.5)


@pytest.mark.parametrize("backbone", ["resnet50", "swin_t"])
@pytest.mark.parametrize("augment", ["none", "light", "strong"])
@pytest.mark.parametrize("name", ["pets3", "hymenoptera"])
def test_photographs_in_batches_differ_in_one_value_of_ten_thousand_at_most(name: str, augment: str, backbone: str) -> None:
    files = sorted((SHARED / name).rglob("*.jpg"))[:300:12]
    if not files:
        pytest.skip(f"shared/data/{name} is not on this machine")
    preprocess = preprocess_for(backbone, 128)
    images = ImageDataset(files, {}, preprocess, augment, seed=1)  # type: ignore[arg-type]
    share, most = differing(*both_ways(images, range(len(files))), preprocess)
    assert share <= 1e-4
    assert most < (1.01 if augment == "none" else 3.5)


def test_a_batch_may_hold_several_views_and_is_split_if_it_is_large(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = preprocess_for("resnet50", 64)
    digests = [f"{number:032x}" for number in range(len(files))]
    images = ImageDataset(files, {}, preprocess, "light", digests=digests)
    monkeypatch.setattr("heads.data.device_images.MAX_PADDED_BYTES", 400_000)
    # With room, but for views there is none; and by the feed of a smaller data set, as extraction does with several.
    feed = ImageFeed(ImageDataset(files[:1], {}, preprocess, "light", digests=digests[:1]), CPU, kept_bytes=10**9)
    own, places = ImageFeed(images, CPU, 0), [(number, view) for number in range(len(files)) for view in (1, 0, 2)]
    inputs, labels = feed.finish(feed.collate([own.reader(*place)() for place in places]))
    share, _ = differing(inputs.features, torch.stack([images.view(*place) for place in places]), preprocess)  # type: ignore[arg-type]
    assert share <= 1e-4
    assert labels == {}


def test_large_images_are_handed_over_resized_to_the_same_pixels(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_feed, "MAX_PIXELS", 0)
    for whole in (False, True):
        preprocess = preprocess_for("swin_t", 64, whole=whole)
        images = ImageDataset(files, {}, preprocess, "light")
        handed = [ImageFeed(images, CPU, 0)[number] for number in range(len(files))]
        assert all(picture.size == resized_size(*picture.size, preprocess) for picture in handed)
        assert max(picture.pixels.nbytes for picture in handed if picture.pixels is not None) <= 3 * 64 * 128 * 2
        ours, theirs = both_ways(images, range(len(files)))
        torch.testing.assert_close(ours, theirs)


def test_an_exported_program_prepares_alike(files: list[Path]) -> None:
    for preprocess in (preprocess_for("resnet50", 64), preprocess_for("swin_t", 64), preprocess_for("resnet50", 64, whole=True)):
        images = ImageDataset(files, {}, preprocess)
        pixels = [decode_pixels(file) for file in files]
        variations = [
            images.variation(number, *resized_size(*image.shape[-2:], preprocess)) for number, image in enumerate(pixels)
        ]
        content = torch.cat([image.permute(0, 2, 3, 1).flatten() for image in pixels])
        batched = prepare_images(content, [tuple(image.shape[-2:]) for image in pixels], variations, preprocess)
        for number, image in enumerate(pixels):
            by_program = normalise(crop_centre(resize(image, preprocess), preprocess), preprocess)
            assert differing(batched[number : number + 1], by_program, preprocess)[0] <= 4e-4, "one value of 12,288 is 0.8e-4"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_kept_images_are_read_once_and_batches_stay_the_same(
    files: list[Path], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess, read = preprocess_for("resnet50", 64), torch.zeros(len(files), dtype=torch.int64).share_memory_()

    def counting(path: Path) -> Tensor:
        read[int(path.stem)] += 1
        return decode_pixels(path)

    monkeypatch.setattr(image_feed, "decode_pixels", counting)
    for room, expected in ((2**30, 1), (0, 3), (200_000, None)):
        read.zero_()
        images, plain = (ImageDataset(files, {"kind": range(len(files))}, preprocess, "light") for _ in range(2))  # type: ignore[arg-type]
        monkeypatch.setattr(images, "feed", lambda device, images=images, room=room: ImageFeed(images, device, room))
        batches, single = (
            SampleLoader(each, 4, CPU, training=True, num_workers=n) for each, n in ((images, num_workers), (plain, 0))
        )
        for epoch in range(3):
            batches.set_epoch(epoch, seed=5)
            single.set_epoch(epoch, seed=5)
            for ours, theirs in zip(batches, single, strict=True):
                assert torch.equal(ours.labels["kind"], theirs.labels["kind"])
                assert differing(ours.inputs.features, theirs.inputs.features, preprocess)[0] <= 1e-4  # type: ignore[arg-type]
        if expected:
            assert read.tolist() == [expected] * len(files)
        else:
            assert {1, 3} == set(read.tolist()), "as many as there is room for are kept"


def _own_process(fails: bool = False) -> int:
    if fails:
        raise ImageError("no picture")
    return os.getpid()


def contents(jobs: Sequence[Callable[[], Any]], num_processes: int) -> list[Any]:
    """What the jobs give; of tensors copies, since their memory is given back."""
    found = []
    for read in run_jobs(jobs, num_processes):
        found.append(copy.deepcopy(read.content))
        read.release()
    return found


def test_reading_processes_keep_order_live_on_and_survive_a_bad_file() -> None:
    first = contents([_own_process, partial(int, 3), partial(str, "x")], 1)
    assert first[1:] == [3, "x"]
    with pytest.raises(ImageError, match="no picture"):
        contents([partial(_own_process, fails=True), *[partial(int, 1)] * 9], 1)
    assert contents([partial(int, 5), _own_process], 1) == [5, first[0]]
    assert first[0] != os.getpid()
    assert contents([_own_process], 0) == [os.getpid()]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_features_of_images_prepared_in_batches_are_those_of_single_ones(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Fit(image_size_px=64, augment="light", views=2)
    variant = Variant(backbone="resnet18", heads=(Head(target="kind"),), freeze="all", fit=fit)
    digests, found, taps = [f"{number:032x}" for number in range(len(files))], [], (Tap(4, "pooled"),)
    torch.manual_seed(0)
    stages = build_backbone(variant, None).eval()
    for single, num_processes in ((True, 0), (False, 0), (False, 1), (False, 4)):
        images = ImageDataset(files, {}, preprocess_for("resnet18", 64), "light", digests=digests)
        monkeypatch.setattr(extraction, "num_loader_workers", lambda device, num_processes=num_processes: num_processes)
        if not single:
            monkeypatch.setattr(images, "feed", lambda device, images=images: ImageFeed(images, device, 0))
        store, trunk = FeatureStore(tmp_path / f"{single}{num_processes}"), trunk_of(variant, "none", CPU)
        requests = [extraction.ExtractionRequest(images, view, taps) for view in (0, 1)]
        extraction.extract(lambda: stages, trunk, requests, store, device=CPU, precision="fp32")
        keys = [key for request in requests for key in request.keys]
        found.append(store.trunk(trunk.id).open(keys, ["4:pooled"])[torch.arange(len(keys))]["4:pooled"])
    torch.testing.assert_close(*found[:2], rtol=1e-3, atol=1e-3)
    assert torch.equal(*found[1:3]), "written to slabs by another process, or here"
    # Four processes read the first batch in parts.
    torch.testing.assert_close(*found[2:], rtol=1e-3, atol=1e-3)
    assert not torch.equal(found[0][: len(files)], found[0][len(files) :])


@pytest.mark.parametrize(
    ("num_samples", "num_processes"), [(8192, 16), (8192, 0), (700, 16), (257, 3), (95, 8), (128, 5), (3, 1)]
)
def test_the_first_batches_are_read_in_parts_that_make_whole_ones(num_samples: int, num_processes: int) -> None:
    parts, batch_size = list(extraction.cut_in_parts(num_samples, 128, num_processes)), 128
    assert [number for start, size in parts for number in range(start, start + size)][:num_samples] == list(range(num_samples))
    assert parts[-1][0] < num_samples, "only the last is filled up"
    ends = {start + size for start, size in parts}
    assert set(range(batch_size, num_samples + 1, batch_size)) <= ends
    sizes = [size for _, size in parts]
    assert sizes == sorted(sizes)
    assert (min(sizes) == 32) == (num_processes >= 4 and num_samples >= 128)


def test_shards_written_beside_the_forward_pass_are_told_in_order_and_their_errors_raised() -> None:
    class Features:
        def __init__(self) -> None:
            self.written: list[int] = []

        def write(self, keys: list[int], rows: dict[str, int]) -> None:
            if rows["tap"] < 0:
                raise OSError("no space left")
            self.written.append(rows["tap"])

    features, told = Features(), []
    with shards.ShardWriter(features, torch.device("cuda"), told.append) as writer:  # type: ignore[arg-type]
        for number in range(3):
            writer.write([0] * number, lambda number=number: {"tap": number}, {})  # type: ignore[arg-type, misc]
    assert features.written == told == [0, 1, 2]
    with pytest.raises(OSError, match="no space"), shards.ShardWriter(features, torch.device("cuda"), told.append) as writer:  # type: ignore[arg-type]
        writer.write([], lambda: {"tap": -1}, {})  # type: ignore[dict-item, return-value]
    assert told == [0, 1, 2]
