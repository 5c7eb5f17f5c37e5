"""What a dataset gives: a mask lies exactly where its image does, label sets and what is missing come as they are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heads.catalogue import IMAGE_BACKBONES
from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import ImagePreprocess, preprocess_for
from heads.data.masks import Masks
from heads.errors import ImageError

# Alike for all channels, so that the brightest stays so.
CUT = ImagePreprocess(48, 54, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
WHOLE = ImagePreprocess(48, 48, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), whole=True)
# A value of the masks, the class it stands for, and the pure colour that its pixels have in the image.
VALUES, COLOURS = (7, 20, 255), np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
NUMBERS = {value: number for number, value in enumerate(VALUES)}
EXIF_ORIENTATION = 0x0112


def pattern(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A disc on two halves, nowhere symmetric, as class numbers."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    middle = random.uniform(-0.3, 0.3, 2)
    disc = np.hypot(rows - middle[0], columns - middle[1]) < 0.45
    return np.where(disc, 2, (rows * 0.4 + columns > 0.1).astype(int))


def draw(folder: Path, name: str, numbers: np.ndarray, orientation: int = 1) -> tuple[Path, Path]:
    """A picture whose colours tell the class of each pixel, and its mask; stored turned where EXIF says so."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    image, mask = COLOURS[numbers], np.array(VALUES, dtype=np.uint8)[numbers]
    # What is stored on its side stands upright after a quarter turn clockwise.
    stored = {1: lambda x: x, 3: lambda x: np.rot90(x, 2), 6: np.rot90}[orientation]
    paths = folder / f"{name}.png", folder / f"{name}-mask.png"
    Image.fromarray(np.ascontiguousarray(stored(image))).save(paths[0], exif=exif)
    # A mask is drawn on what is seen; of a half turn sizes do not tell, so it says itself how it is turned.
    Image.fromarray(np.ascontiguousarray(stored(mask))).save(paths[1], exif=exif if orientation == 3 else Image.Exif())
    return paths


def dataset(pairs: Sequence[tuple[Path, Path | None]], preprocess: ImagePreprocess, augment: str = "none", **options: object):
    masks = Masks([mask for _, mask in pairs], NUMBERS, [1, 2, 3])
    paths = [image for image, _ in pairs]
    return ImageDataset(paths, {}, preprocess, augment, seed=3, masks={"mask": masks}, **options)  # type: ignore[arg-type]


def agreement(made: ImageDataset, index: int) -> float:
    """The share of pixels where the mask tells what the image shows there."""
    image, labels, _ = made[index]
    return (image.argmax(dim=0) == labels["mask"]).float().mean().item()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("preprocess", [CUT, WHOLE], ids=["cut", "whole"])
@pytest.mark.parametrize("augment", ["none", "light", "medium", "strong"])
def test_a_mask_lies_where_its_image_does_however_it_is_varied(
    tmp_path: Path, augment: str, preprocess: ImagePreprocess, flip: bool
) -> None:
    sizes = [(61, 83), (83, 61), (48, 48), (37, 150), (201, 199)]
    pairs = [draw(tmp_path, str(n), pattern(*size, seed=n)) for n, size in enumerate(sizes)]
    made = dataset(pairs, preprocess, augment, flip=flip)
    seen = []
    for epoch in range(6):
        made.set_epoch(epoch)
        for index in range(len(sizes)):
            mask = made[index][1]["mask"]
            assert mask.shape == (48, 48)
            assert mask.dtype == torch.int64
            assert set(mask.unique().tolist()) <= {0, 1, 2}, "no value is invented between two others"
            seen.append(agreement(made, index))
    # Strong augmentation covers up to a quarter of the image with noise, in which one pixel in three agrees.
    assert min(seen) > (0.75 if augment == "strong" else 0.94)
    assert np.median(seen) > (0.9 if augment == "strong" else 0.97)


def test_a_mask_moved_by_a_few_pixels_would_be_noticed(tmp_path: Path) -> None:
    image, mask = draw(tmp_path, "a", pattern(90, 90))
    values = np.asarray(Image.open(mask))
    for turned in (np.roll(values, 6, axis=1), np.flip(values, axis=1)):
        Image.fromarray(turned).save(mask)
        assert agreement(dataset([(image, mask)], WHOLE), 0) < 0.94


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_mask_is_turned_upright_with_its_image(tmp_path: Path, orientation: int) -> None:
    pair = draw(tmp_path, "a", pattern(60, 90), orientation)
    assert agreement(dataset([pair], WHOLE), 0) > 0.97


def test_whole_images_keep_their_rims_and_cut_ones_do_not(tmp_path: Path) -> None:
    rims = np.zeros((80, 120), dtype=int)
    rims[:, :8], rims[:, -8:] = 1, 2
    pair = draw(tmp_path, "a", rims)
    assert dataset([pair], WHOLE)[0][1]["mask"].unique().tolist() == [0, 1, 2]
    assert dataset([pair], CUT)[0][1]["mask"].unique().tolist() == [0]
    assert preprocess_for("mobilenet_v2", 224, whole=True).resize_px == 224
    for backbone in IMAGE_BACKBONES:
        made = preprocess_for(backbone, 224, whole=True)
        assert made.whole
        assert ImagePreprocess.from_json(made.to_json()) == made
        assert not preprocess_for(backbone, 224).whole


def test_values_without_a_number_are_missing_and_so_is_a_sample_without_a_mask(tmp_path: Path) -> None:
    numbers = pattern(64, 64)
    image, mask = draw(tmp_path, "a", numbers)
    values = np.array(Image.open(mask))
    values[:20] = 9
    Image.fromarray(values).save(mask)
    found = dataset([(image, mask), (image, None)], ImagePreprocess(64, 64, CUT.mean, CUT.std, whole=True))
    first = found[0][1]["mask"]
    assert (first[:20] == -1).all()
    assert first[20:].tolist() == numbers[20:].tolist()
    assert (found[1][1]["mask"] == -1).all()
    assert found[1][1]["mask"].shape == (64, 64)
    counts, num_samples = found.occurrences("mask")
    assert counts.tolist() == [1, 2, 3]
    assert num_samples == 1


def test_masks_of_sixteen_bits_and_of_palettes_give_the_same_classes(tmp_path: Path) -> None:
    numbers = pattern(32, 32)
    image, mask = draw(tmp_path, "a", numbers)
    wide = tmp_path / "wide.png"
    Image.fromarray((numbers * 300).astype(np.uint16)).save(wide)
    palette = Image.open(mask).copy()
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "palette.png")
    plain = ImagePreprocess(32, 32, CUT.mean, CUT.std, whole=True)
    other = ImageDataset([image], {}, plain, masks={"mask": Masks([wide], {0: 0, 300: 1, 600: 2})})
    for made in (other, dataset([(image, tmp_path / "palette.png")], plain)):
        assert made[0][1]["mask"].tolist() == numbers.tolist()


def test_several_masks_of_an_image_go_the_same_way_and_stay_the_same_in_the_cache(tmp_path: Path) -> None:
    image, mask = draw(tmp_path, "a", pattern(70, 64))
    masks = {"one": Masks([mask], NUMBERS), "two": Masks([mask], {7: 1, 20: 0})}
    made = ImageDataset([image], {"kind": [4]}, CUT, "medium", seed=1, masks=masks)
    for epoch in (0, 1, 0):
        made.set_epoch(epoch)
        labels = made[0][1]
        assert list(labels) == ["kind", "one", "two"]
        assert torch.equal(labels["two"], torch.tensor([1, 0, -1])[labels["one"]])
    fresh = ImageDataset([image], {"kind": [4]}, CUT, "medium", seed=1, cache_bytes=0, masks=masks)
    assert torch.equal(fresh[0][1]["one"], labels["one"])
    assert not fresh._resized


def test_a_mask_of_another_size_or_none_is_refused_by_name(tmp_path: Path) -> None:
    image, mask = draw(tmp_path, "a", pattern(40, 40))
    Image.new("L", (20, 40)).save(mask)
    with pytest.raises(ImageError, match=r"a-mask\.png.*is 20x40 px, the image 40x40 px"):
        dataset([(image, mask)], WHOLE)[0]
    with pytest.raises(ImageError, match=r"lost\.png"):
        dataset([(image, tmp_path / "lost.png")], WHOLE)[0]
    with pytest.raises(ValueError, match="'mask' has 2 labels for 1 images"):
        ImageDataset([image], {}, WHOLE, masks={"mask": Masks([None, None], NUMBERS)})


def test_label_sets_come_as_rows_and_occur_as_often_as_they_are_there(tmp_path: Path) -> None:
    pairs = [draw(tmp_path, str(n), pattern(40, 40)) for n in range(4)]
    rows = torch.tensor([[1, 0, 1], [0, 0, 0], [-1, -1, -1], [1, 0, 0]])
    made = ImageDataset([image for image, _ in pairs], {"tags": rows, "kind": [0, 2, -1, 2]}, CUT)
    assert [made[n][1]["tags"].tolist() for n in range(4)] == rows.tolist()
    counts, num_samples = made.occurrences("tags")
    assert (counts.tolist(), num_samples) == ([2, 0, 1], 3), "an empty set is a label, a missing one is none"
    counts, num_samples = made.occurrences("kind")
    assert (counts.tolist(), num_samples) == ([1, 0, 2], 3)
