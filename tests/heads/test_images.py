"""Pictures of every kind decode alike, damaged ones are refused by name, and what a network sees repeats exactly."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from heads.catalogue import IMAGE_BACKBONES
from heads.data import decoding
from heads.data.augmentation import STRENGTHS, Geometry, apply_geometry, draw_geometry
from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import ImagePreprocess, build_draw, decode, pixels_of, prepare, preprocess_for, resize, vary
from heads.errors import ImageError

PREPROCESS = ImagePreprocess(32, 36, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture, as photographs are: its resized values do not hang on single pixels."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG", "PPM", "JPEG2000"])
def test_common_formats_decode_from_files_without_an_extension(tmp_path: Path, name: str) -> None:
    original = picture(40, 30)
    (tmp_path / "0a1b").write_bytes(encoded(original, name))
    image = decode(tmp_path / "0a1b")
    assert image.mode == "RGB"
    assert image.size == (40, 30)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(original)).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_whatever_their_exif_orientation(orientation: int) -> None:
    original = picture(40, 30)
    turned = original.transpose(_inverse(orientation)) if orientation > 1 else original
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(turned, "PNG", exif=exif))
    assert np.array_equal(np.asarray(image), np.asarray(original))


def _inverse(orientation: int) -> Image.Transpose:
    turn = decoding.UPRIGHT[orientation]
    swapped = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
    return swapped.get(turn, turn)


def test_sixteen_bit_greys_keep_their_brightness() -> None:
    ramp = np.linspace(0, 0xFFFF, 256).astype(np.uint16).reshape(16, 16)
    for name in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(ramp), name))
        assert np.array_equal(np.asarray(image)[..., 0], np.round(ramp / 257).astype(np.uint8))
    portable = b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes()
    assert np.array_equal(np.asarray(decode(portable))[..., 1], np.round(ramp / 257).astype(np.uint8))


def test_transparency_lies_on_white_and_greys_and_palettes_become_rgb() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(decode(encoded(clear, "PNG"))).min() == 255
    assert np.asarray(decode(encoded(Image.new("LA", (4, 4), (10, 0)), "PNG"))).min() == 255
    palette = picture(8, 8).quantize(16)
    assert np.array_equal(np.asarray(decode(encoded(palette, "PNG"))), np.asarray(palette.convert("RGB")))
    assert np.asarray(decode(encoded(palette, "PNG", transparency=bytes(16)))).min() == 255
    assert np.asarray(decode(encoded(Image.new("L", (4, 4), 77), "PNG"))).tolist() == [[[77] * 3] * 4] * 4
    assert np.asarray(decode(encoded(Image.new("1", (4, 4), 1), "PNG"))).min() == 255
    assert decode(encoded(picture(8, 8).convert("CMYK"), "JPEG")).mode == "RGB"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_picture_cut_short_is_refused_by_its_file_name(tmp_path: Path, name: str) -> None:
    content = encoded(picture(64, 64), name)
    file = tmp_path / "cut.img"
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"cut\.img"):
        decode(file)


def test_damaged_bytes_never_raise_anything_but_image_errors() -> None:
    random = np.random.default_rng(0)
    for name in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        content = np.frombuffer(encoded(picture(32, 32), name), dtype=np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[random.integers(0, len(content), 4)] = random.integers(0, 256, 4)
            try:
                assert decode(damaged.tobytes()).mode == "RGB"
            except ImageError:
                continue


def test_text_and_missing_files_and_programs_for_printers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"notes\.jpg.*is no image"):
        decode(tmp_path / "notes.jpg")
    with pytest.raises(ImageError, match=r"absent\.jpg: there is no such file"):
        decode(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="is no image"):
        decode(encoded(picture(8, 8), "EPS"))
    with pytest.raises(ImageError, match="mode F"):
        decode(encoded(Image.new("F", (4, 4)), "TIFF"))


def test_a_decompression_bomb_is_refused_before_it_unfolds() -> None:
    bomb = encoded(Image.new("1", (20_000, 6_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ImageError, match=r"20000 x 6000 px .*scale the picture down"):
        decode(bomb)
    with pytest.raises(ImageError):
        decode(b"P5 60000 6000 255 ")


def test_decoding_leaves_no_warning_and_no_filter_behind() -> None:
    before = list(warnings.filters)
    decode(encoded(picture(8, 8).quantize(16), "PNG", transparency=bytes(16)))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "I"])
def test_masks_of_every_kind_of_one_channel_give_their_values(mode: str) -> None:
    values = np.random.default_rng(0).integers(0, {"1": 2, "L": 256, "P": 200}.get(mode, 2**16), (5, 7))
    dtype = {"1": np.bool_, "L": np.uint8, "P": np.uint8, "I;16": np.uint16, "I": np.int32}[mode]
    mask = (
        Image.fromarray(values.astype(dtype)) if mode != "P" else Image.frombytes("P", (7, 5), values.astype(np.uint8).tobytes())
    )
    if mode == "P":
        mask.putpalette(list(range(255, -1, -1)) * 3)
    for name in ("TIFF",) if mode == "I" else ("PNG", "TIFF"):
        found = decoding.decode_mask(encoded(mask, name))
        assert np.issubdtype(found.dtype, np.integer)
        assert found.tolist() == values.tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_drawn_as_its_picture_is_stored_is_turned_with_it(orientation: int) -> None:
    upright = np.arange(35, dtype=np.uint8).reshape(5, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(upright)
    stored = stored.transpose(_inverse(orientation)) if orientation > 1 else stored
    image = encoded(stored, "PNG", exif=exif)
    assert decoding.decode_mask(encoded(Image.fromarray(upright), "PNG"), image).tolist() == upright.tolist()
    assert decoding.decode_mask(image, image).tolist() == upright.tolist(), "a mask may say itself how it is turned"
    if orientation in decoding.SIDEWAYS:
        assert decoding.decode_mask(encoded(stored, "PNG"), image).tolist() == upright.tolist()


def test_what_is_no_mask_is_refused_by_name(tmp_path: Path) -> None:
    image = encoded(picture(8, 6), "PNG")
    (tmp_path / "cut.png").write_bytes(encoded(Image.new("L", (64, 64)), "PNG")[:60])
    for source, words in (
        (image, "3 channels; a mask has one"),
        (encoded(Image.new("LA", (8, 6)), "PNG"), "2 channels"),
        (encoded(Image.new("F", (8, 6)), "TIFF"), "pixels of mode F; a mask has whole numbers"),
        (encoded(Image.new("I", (8, 6), -1), "TIFF"), "values from -1 to -1; allowed: 0 to 65535"),
        (encoded(Image.new("L", (6, 8)), "PNG"), "is 6x8 px, the image 8x6 px"),
        (b"no picture", "is no image"),
        (tmp_path / "cut.png", r"cut\.png"),
        (tmp_path / "absent.png", r"absent\.png: there is no such file"),
    ):
        with pytest.raises(ImageError, match=words):
            decoding.decode_mask(source, image)
    with pytest.raises(ImageError, match=r"its mask: .*its image: is no image"):
        decoding.decode_mask(image=b"no picture", source=encoded(Image.new("L", (8, 6)), "PNG"), name="its mask")


def test_preprocessing_keeps_the_weights_own_ratio_and_small_pictures_whole() -> None:
    assert preprocess_for("mobilenet_v2", 224).resize_px == 256
    assert preprocess_for("convnext_tiny", 224).resize_px == 236
    assert preprocess_for("mobilenet_v2", 160).resize_px == 183
    assert preprocess_for("mobilenet_v2", 64).resize_px == 64
    assert preprocess_for("inception_v3", 299).resize_px == 342
    assert preprocess_for("efficientnet_v2_s", 384).resize_px == 384
    for backbone in IMAGE_BACKBONES:
        made = preprocess_for(backbone, 96)
        assert ImagePreprocess.from_json(made.to_json()) == made


def test_bilinear_preprocessing_is_written_as_before_there_was_a_choice() -> None:
    assert PREPROCESS.to_json().keys() == {"image_size_px", "resize_px", "mean", "std"}
    assert preprocess_for("swin_t", 96).to_json()["interpolation"] == "bicubic"
    with pytest.raises(ValueError, match="'nearest' is unknown; allowed: bilinear, bicubic"):
        ImagePreprocess.from_json({**PREPROCESS.to_json(), "interpolation": "nearest"})


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "swin_t"])
def test_preprocessing_is_what_torchvision_does_to_within_a_grey_level(backbone: str) -> None:
    from torchvision.transforms import v2

    made = preprocess_for(backbone, 112)
    theirs = v2.Compose(
        [
            v2.Resize(made.resize_px, v2.InterpolationMode(made.interpolation)),
            v2.CenterCrop(112),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(made.mean, made.std),
        ]
    )
    for size in ((200, 150), (150, 200), (96, 96), (50, 40)):
        # Away from black and white, where Pillow cuts bicubic's overshoot off between its two passes.
        image = picture(*size).point(lambda value: 48 + value // 2)
        assert (prepare(image, made) - theirs(image)).abs().max() < 1.01 / 255 / min(made.std)


def test_strips_are_cut_to_their_middle_before_they_are_scaled_up() -> None:
    assert resize(pixels_of(picture(3, 3_000)), PREPROCESS).shape == (1, 3, 72, 36)
    assert prepare(picture(3_000, 1), PREPROCESS).shape == (3, 32, 32)


def test_an_unfit_preprocessing_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size_px 40"):
        ImagePreprocess(40, 36, PREPROCESS.mean, PREPROCESS.std)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(9):
        picture(50 + index, 40, seed=index).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def dataset(files: list[Path], augment: str, **options: int) -> ImageDataset:
    labels = {"kind": list(range(9)), "other": [-1] * 9}
    return ImageDataset(files, labels, PREPROCESS, augment, seed=7, **options)


def test_an_item_is_an_image_its_labels_and_its_index(files: list[Path]) -> None:
    image, labels, index = dataset(files, "none")[4]
    assert image.shape == (3, 32, 32)
    assert labels == {"kind": 4, "other": -1}
    assert index == 4
    assert torch.equal(image, prepare(decode(files[4]), PREPROCESS))


@pytest.mark.parametrize("augment", ["light", "medium", "strong"])
def test_augmentation_repeats_by_seed_epoch_and_index_and_changes_with_each(files: list[Path], augment: str) -> None:
    first, second = dataset(files, augment), dataset(files, augment)
    assert torch.equal(first[3][0], second[3][0])
    before = first[3][0]
    first.set_epoch(1)
    assert not torch.equal(first[3][0], before)
    first.set_epoch(0)
    assert torch.equal(first[3][0], before)
    assert not torch.equal(ImageDataset(files, {}, PREPROCESS, augment, seed=8)[3][0], before)


@pytest.mark.parametrize("augment", ["light", "medium", "strong"])
def test_augmentation_never_mirrors_unasked_and_stays_near_the_picture(augment: str) -> None:
    ramp = np.repeat(np.linspace(0, 255, 36).astype(np.uint8)[None, :, None], 36, axis=0).repeat(3, axis=2)
    resized = resize(pixels_of(Image.fromarray(ramp)), PREPROCESS).to(torch.uint8)
    draw, random = build_draw(PREPROCESS, augment), np.random.default_rng(0)
    for _ in range(200):
        image = vary(resized, draw(*resized.shape[-2:], random), PREPROCESS)
        # Erasing hides a part of the ramp, so that its slope may nearly vanish.
        assert (image[:, :, 20:].mean() - image[:, :, :12].mean()) > {"light": 0.5, "medium": 0.4, "strong": -0.3}[augment]
        assert image.isfinite().all()


@pytest.mark.parametrize("augment", ["none", "light", "medium", "strong"])
def test_a_flip_mirrors_about_every_second_picture(augment: str) -> None:
    resized = resize(pixels_of(picture(36, 36)), PREPROCESS).to(torch.uint8)
    resized[..., :18] //= 4
    draw, random = build_draw(PREPROCESS, augment, flip=True), np.random.default_rng(0)
    images = [vary(resized, draw(*resized.shape[-2:], random), PREPROCESS) for _ in range(100)]
    mirrored = [bool(image[..., :16].mean() > image[..., 16:].mean()) for image in images]
    assert 30 < sum(mirrored) < 70


def test_stronger_augmentation_takes_pictures_further() -> None:
    resized = resize(pixels_of(picture(48, 40)), PREPROCESS).to(torch.uint8)
    plain = vary(resized, build_draw(PREPROCESS, "none")(*resized.shape[-2:], np.random.default_rng(0)), PREPROCESS)
    far = []
    for augment in ("light", "medium", "strong"):
        draw, random = build_draw(PREPROCESS, augment), np.random.default_rng(1)
        far.append(
            np.mean(
                [(vary(resized, draw(*resized.shape[-2:], random), PREPROCESS) - plain).abs().mean().item() for _ in range(100)]
            )
        )
    assert far == sorted(far)
    assert far[2] > 1.5 * far[0]


@pytest.mark.parametrize("augment", ["light", "medium", "strong"])
def test_a_geometry_shows_the_same_place_of_a_picture_and_of_its_mask(augment: str) -> None:
    rows, columns = np.mgrid[-1:1:96j, -1.2:0.8:130j]
    mask = torch.from_numpy(((np.hypot(rows, columns) < 0.5) * 2 + (rows > columns)).astype(np.uint8))[None, None]
    layers = torch.cat([(mask == value).float() * 255 for value in range(4)], dim=1)
    random = np.random.default_rng(3)
    for _ in range(20):
        geometry = draw_geometry(96, 130, 64, STRENGTHS[augment], True, random)
        seen = apply_geometry(mask, geometry, 64, "nearest")
        assert seen.shape == (1, 1, 64, 64)
        assert set(seen.unique().tolist()) <= {0, 1, 2, 3}, "a mask keeps its values"
        picture_of_it = apply_geometry(layers, geometry, 64, "bilinear").argmax(dim=1, keepdim=True)
        assert (picture_of_it == seen).float().mean() > 0.97


def test_a_picture_is_turned_without_being_sheared() -> None:
    square = torch.zeros(1, 1, 60, 120)
    square[..., 20:40, 50:70] = 255
    turned = apply_geometry(square, Geometry(0, 60, 30, 60, degrees=45.0), 60, "bilinear") / 255
    assert turned.sum() == pytest.approx(400, rel=0.02), "its area stays"
    assert turned[0, 0, 30 - 13, 30] > 0.5
    assert turned[0, 0, 30, 30 + 12] > 0.5
    assert turned[0, 0, 30 - 9, 30 - 9] < 0.5


def test_the_cache_changes_no_value_and_holds_no_more_than_it_may(files: list[Path]) -> None:
    for augment in ("none", "light"):
        cached, plain = dataset(files, augment), dataset(files, augment, cache_bytes=0)
        for epoch in (0, 1):
            cached.set_epoch(epoch)
            plain.set_epoch(epoch)
            assert all(torch.equal(cached[i][0], plain[i][0]) for i in range(9))
        assert not plain._resized
        assert len(cached._resized) == 9
    bounded = dataset(files, "none", cache_bytes=15_000)
    images = [bounded[i][0] for i in range(9)]
    assert 0 < sum(x.nbytes for each in bounded._resized.values() for x in each) <= 15_000
    assert all(torch.equal(bounded[i][0], image) for i, image in enumerate(images))


def test_loader_workers_see_the_epoch_and_give_the_same_images(files: list[Path]) -> None:
    alone, shared = dataset(files, "light"), dataset(files, "light")
    loader = DataLoader(shared, batch_size=4, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        images = torch.cat([batch[0] for batch in loader])
        assert torch.equal(images, torch.stack([alone[i][0] for i in range(9)]))


def test_a_bad_picture_raises_by_name_and_labels_must_fit(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(ImageError, match=r"bad\.png"):
        ImageDataset([tmp_path / "bad.png"], {"kind": [0]}, PREPROCESS)[0]
    with pytest.raises(ValueError, match="'kind' has 2 labels for 1 images"):
        ImageDataset([tmp_path / "bad.png"], {"kind": [0, 1]}, PREPROCESS)
