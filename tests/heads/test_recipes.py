"""Pictures whose pixels were once read wrongly are read right, and told apart by a number; all others keep theirs."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.Image import Transpose

from heads.data.decoding import UPRIGHT, decode, decode_mask
from heads.data.mask_values import is_shaded
from heads.data.recipes import FIRST, MENDED, drawn_on, image_recipe, mask_recipe
from heads.errors import ImageError

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
GREYS = np.arange(45, dtype=np.uint8).reshape(5, 9)


def encoded(pixels: np.ndarray | Image.Image, name: str, orientation: int = 1, **options: object) -> bytes:
    image, exif, buffer = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels), Image.Exif(), io.BytesIO()
    if orientation > 1:
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(buffer, name, **options)
    return buffer.getvalue()


def png(depth: int, kind: int, row: bytes, width: int, transparent: bytes = b"") -> bytes:
    """A PNG of one row, as Pillow does not write it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")])


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_stands_as_its_twin_in_png_does(orientation: int, compression: str | None) -> None:
    options = {"compression": compression} if compression else {}
    tiff, twin = encoded(COLOURS, "TIFF", orientation, **options), encoded(COLOURS, "PNG", orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(twin))))
    assert np.array_equal(np.asarray(decode(tiff)), upright)
    assert np.array_equal(np.asarray(decode(twin)), upright)
    assert np.array_equal(np.asarray(decode(Image.open(io.BytesIO(tiff)))), upright), "as Pillow opened it, too"
    assert (image_recipe(tiff), image_recipe(twin)) == (MENDED if orientation > 1 else FIRST, FIRST)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("image_format", "mask_format"), [("TIFF", "PNG"), ("PNG", "TIFF"), ("TIFF", "TIFF")])
def test_a_mask_fits_its_image_where_one_of_them_is_a_tiff(image_format: str, mask_format: str, orientation: int) -> None:
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(GREYS, "PNG", orientation)))))
    image = encoded(COLOURS, image_format, orientation)
    assert np.array_equal(decode_mask(encoded(upright, mask_format), image), upright), "drawn on the upright image"
    assert np.array_equal(decode_mask(encoded(GREYS, mask_format, orientation), image), upright), "with a turn of its own"
    as_stored = encoded(GREYS, mask_format)
    assert np.array_equal(decode_mask(as_stored, image, as_stored=True), upright)
    if orientation in (5, 6, 7, 8):
        assert np.array_equal(decode_mask(as_stored, image), upright), "its size tells"
    assert mask_recipe(encoded(GREYS, mask_format, orientation)) == (
        MENDED if (mask_format, orientation > 1) == ("TIFF", True) else 1
    )


def test_pages_beyond_the_first_do_not_change_how_a_tiff_stands() -> None:
    pages = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1].copy())]
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], exif=exif)
    assert np.array_equal(np.asarray(decode(content)), np.asarray(pages[0].transpose(Transpose.ROTATE_270)))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_what_is_decoded_does_not_turn_again(name: str) -> None:
    once = decode(encoded(COLOURS, name, 6))
    assert np.array_equal(np.asarray(decode(once)), np.asarray(once))


def test_transparent_is_white_whatever_the_bits() -> None:
    sixteen = png(16, 0, struct.pack(">4H", 0, 1000, 30000, 65535), 4, struct.pack(">H", 1000))
    assert np.asarray(decode(sixteen))[0, :, 0].tolist() == [0, 255, 117, 255]
    two = png(2, 0, bytes([0b00011011]), 4, struct.pack(">H", 1))
    assert np.asarray(decode(two))[0, :, 0].tolist() == [0, 255, 170, 255]
    four = png(4, 0, bytes([0x0F, 0x5A]), 4, struct.pack(">H", 5))
    assert np.asarray(decode(four))[0, :, 0].tolist() == [0, 255, 255, 170]
    colours = png(16, 2, struct.pack(">6H", 0x1234, 0x2345, 0x3456, 0x7788, 0, 0), 2, struct.pack(">3H", 0x1234, 0x2345, 0x3456))
    assert np.asarray(decode(colours)).tolist() == [[[255, 255, 255], [0x77, 0, 0]]]
    assert [image_recipe(content) for content in (sixteen, two, four, colours)] == [MENDED] * 4


def test_pictures_that_were_always_read_right_keep_the_first_recipe(tmp_path: Path) -> None:
    kinds = {
        "grey of 16 bits": png(16, 0, struct.pack(">2H", 0, 1000), 2),
        "grey of 8 bits with a transparent one": png(8, 0, bytes([3, 5]), 2, struct.pack(">H", 5)),
        "grey of 1 bit with a transparent one": png(1, 0, bytes([0b01000000]), 2, struct.pack(">H", 1)),
        "grey of 2 bits, transparent black": png(2, 0, bytes([0b00011011]), 4, struct.pack(">H", 0)),
        "colours of 16 bits, scaled from 8": png(16, 2, struct.pack(">3H", 0x7777, 0, 0), 1, struct.pack(">3H", 0x7777, 0, 0)),
        "palette": encoded(Image.fromarray(GREYS).convert("P"), "PNG", transparency=3),
        "alpha": encoded(Image.fromarray(GREYS).convert("LA"), "PNG"),
        "CMYK": encoded(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"),
        "big-endian 16 bits": encoded(Image.fromarray(GREYS.astype(">u2")), "TIFF"),
        **{name: encoded(COLOURS, name, 6) for name in ("PNG", "JPEG", "WEBP", "AVIF")},
        **{f"plain {name}": encoded(COLOURS, name) for name in ("TIFF", "GIF", "BMP", "PPM")},
        "no picture": b"text",
        "nothing": b"",
        "a PNG cut short": png(16, 0, bytes(4), 2, bytes(2))[:40],
    }
    for name, content in kinds.items():
        (tmp_path / "file").write_bytes(content)
        assert (image_recipe(content), image_recipe(tmp_path / "file")) == (FIRST, FIRST), name


@pytest.mark.parametrize("top", [1, 3, 15, 100, 255, 1000, 65535])
def test_values_of_few_bits_are_those_stored(top: int) -> None:
    wide = ">u2" if top > 255 else "u1"
    values = np.array([0, 1, min(2, top), min(3, top)])
    for content in (
        f"P5 4 1 {top}\n".encode() + values.astype(wide).tobytes(),
        f"P2 4 1 {top}\n{' '.join(map(str, values))}\n".encode(),
    ):
        assert decode_mask(content).tolist() == [values.tolist()]
        assert mask_recipe(content) == (FIRST if top in (255, 65535) else MENDED)
    assert decode_mask(png(2, 0, bytes([0b00011011]), 4)).tolist() == [[0, 1, 2, 3]]
    assert decode_mask(png(4, 0, bytes([0x0F, 0x5A]), 4)).tolist() == [[0, 15, 5, 10]]
    assert decode_mask(encoded(Image.fromarray(GREYS % 4).convert("P"), "PNG", bits=2)).tolist() == (GREYS % 4).tolist()


def test_a_lossy_mask_is_refused_and_told_to_be_png() -> None:
    mask = Image.fromarray(np.repeat(np.repeat(np.eye(4, dtype=np.uint8) * 255, 8, 0), 8, 1))
    for name, options in (
        ("JPEG", {}),
        ("JPEG", {"quality": 100}),
        ("JPEG2000", {"irreversible": True}),
        ("TIFF", {"compression": "jpeg"}),
        ("AVIF", {}),
        ("MPO", {}),
    ):
        with pytest.raises(ImageError, match=r"does not keep values as they are.*PNG"):
            decode_mask(encoded(mask, name, **options))
    for name, options in (("WEBP", {}), ("WEBP", {"lossless": True}), ("JPEG", {})):
        with pytest.raises(ImageError, match="PNG"):
            decode_mask(encoded(mask.convert("RGB"), name, **options))
    for name, options in (
        ("JPEG2000", {"irreversible": False}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("PNG", {}),
        ("TGA", {}),
    ):
        assert np.array_equal(decode_mask(encoded(mask, name, **options)), np.asarray(mask)), name


def blobs(values: list[int], seed: int, size: int = 96) -> np.ndarray:
    """A mask of round and square regions."""
    random, rows = np.random.default_rng(seed), np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint8)
    for _ in range(8):
        y, x, radius = random.integers(0, size), random.integers(0, size), random.integers(3, size // 4)
        far = np.abs(rows - np.array([y, x])[:, None, None])
        mask[(far.max(0) if random.random() < 0.5 else np.hypot(*far)) < radius] = random.choice(values)
    return mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("side", [40, 72, 200])
def test_a_mask_resized_smoothly_is_one_of_shades(side: int, method: Image.Resampling, seed: int) -> None:
    mask = Image.fromarray(blobs([255], seed))
    assert is_shaded(np.asarray(mask.resize((side, side), method)).astype(np.int32))
    assert not is_shaded(np.asarray(mask.resize((side, side), Image.Resampling.NEAREST)).astype(np.int32))


def test_a_mask_that_went_through_jpeg_is_one_of_shades() -> None:
    for seed in range(4):
        once = Image.open(io.BytesIO(encoded(blobs([255], seed), "JPEG", quality=90)))
        assert is_shaded(np.asarray(once).astype(np.int32))


def test_masks_of_many_small_classes_are_none_of_shades() -> None:
    for values in ([1, 2], list(range(1, 14)), list(range(150)), [5, 250, 255]):
        assert not any(is_shaded(blobs(values, seed).astype(np.int32)) for seed in range(8)), values
    camvid = Path(__file__).parents[3] / "shared" / "data" / "camvid" / "valannot"
    for file in sorted(camvid.glob("*.png"))[:5]:
        assert not is_shaded(decode_mask(file)), file


@pytest.mark.parametrize(
    ("size", "orientation", "told"),
    [
        ((9, 5), 6, "stored"),
        ((5, 9), 6, "upright"),
        ((9, 5), 3, "unknown"),
        ((9, 5), 2, "unknown"),
        ((9, 5), 4, "unknown"),
        ((9, 5), 1, None),
    ],
)
@pytest.mark.parametrize("name", ["PNG", "TIFF", "JPEG"])
def test_sizes_tell_what_a_mask_is_drawn_on_or_do_not(
    name: str, size: tuple[int, int], orientation: int, told: str | None
) -> None:
    image = encoded(COLOURS, name, orientation)
    assert drawn_on(encoded(Image.new("L", size), "PNG"), image) == told
    assert drawn_on(encoded(Image.new("L", size), "PNG", 3), image) is None, "it has a turn of its own"
    square = encoded(np.zeros((6, 6, 3), np.uint8), name, orientation)
    assert drawn_on(encoded(Image.new("L", (6, 6)), "PNG"), square) == (None if orientation == 1 else "unknown")


def test_every_turn_is_known() -> None:
    assert set(UPRIGHT) == set(range(2, 9))
