"""torchvision's decoder gives Pillow's pixels to the bit, or Pillow decodes, or says in its own words why it cannot."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heads.data import pixels
from heads.data.decoding import EXIF_ORIENTATION, decode
from heads.data.pixels import decode_pixels
from heads.errors import ImageError

SHARED = Path(__file__).parents[2].parent / "shared"
SETS = ("pets3", "sign_digits", "camvid", "hymenoptera")


def encoded(image: Image.Image, name: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def colours(mode: str = "RGB") -> Image.Image:
    """Half smooth, half noise, of odd sides."""
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((91, 67), Image.Resampling.BICUBIC)
    smooth.paste(Image.fromarray(random.integers(0, 256, (67, 40, 3), dtype=np.uint8)))
    return smooth.convert(mode)


def told(read: object, content: bytes | Path) -> np.ndarray | str:
    """The pixels (H, W, 3) that a function reads, or the words in which it refuses."""
    try:
        found = read(content)  # type: ignore[operator]
    except ImageError as error:
        return str(error)
    return np.asarray(found) if isinstance(found, Image.Image) else found[0].permute(1, 2, 0).numpy()


def by_torchvision(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each JPEG file from now on, whether torchvision decoded it."""
    seen, plain = [], pixels._decode_jpeg

    def noting(source: bytes | Path, orientation: int | None):
        found = plain(source, orientation)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(pixels, "_decode_jpeg", noting)
    return seen


@pytest.mark.parametrize("name", SETS)
def test_shared_images_have_pillows_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(path for path in (SHARED / "data" / name).rglob("*") if path.suffix in (".jpg", ".png"))
    if not files:
        pytest.skip(f"shared/data/{name} is not on this machine")
    seen = by_torchvision(monkeypatch)
    some = [files[number] for number in np.random.default_rng(0).permutation(len(files))[:60]]
    for file in some:
        assert np.array_equal(told(decode_pixels, file), told(decode, file)), file
    assert all(seen)
    assert len(seen) == sum(path.suffix == ".jpg" for path in some)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{"quality": 30}, {"quality": 100, "subsampling": 0}, {"progressive": True}, {"keep_rgb": True}]
)
def test_jpegs_of_every_kind_are_decoded_by_torchvision(mode: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = by_torchvision(monkeypatch)
    for more in ({}, {"subsampling": 0}, {"restart_marker_blocks": 2}, {"optimize": True}):
        content = encoded(colours(mode), **(more | options))
        assert np.array_equal(told(decode_pixels, content), told(decode, content))
    assert seen == [True] * 4


@pytest.mark.parametrize("orientation", range(10))
def test_a_jpeg_stands_upright_whatever_its_exif_orientation(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, exif = by_torchvision(monkeypatch), Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encoded(colours(), exif=exif)
    found = decode_pixels(content)
    assert np.array_equal(told(decode_pixels, content), told(decode, content))
    assert found.stride()[1] == 1, "channels last, as Pillow's pixels lie"
    assert seen == [True, True]


def test_all_other_files_go_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = by_torchvision(monkeypatch)
    wide = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)
    contents = [encoded(colours("CMYK")), encoded(wide, "PNG"), encoded(wide, "TIFF"), encoded(colours(), "WEBP")]
    contents += [encoded(colours(mode), "PNG") for mode in ("RGB", "L", "1", "P", "RGBA", "LA")]
    contents.append(encoded(colours().quantize(16), "PNG", transparency=bytes(16)))
    contents.append(encoded(colours(), "MPO", save_all=True, append_images=[colours()]))
    for content in contents:
        assert np.array_equal(told(decode_pixels, content), told(decode, content))
    assert not seen


def test_damaged_jpegs_are_read_or_refused_as_pillow_does(capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for options in ({}, {"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 3}):
        whole = encoded(colours(), **options)
        damaged = [whole[: random.integers(2, len(whole))] for _ in range(20)] + [whole[:-1], whole[:-2], whole + b"more"]
        for _ in range(80):
            content = bytearray(whole)
            content[random.integers(len(whole))] = random.integers(256)
            damaged.append(bytes(content))
        outcomes = [(told(decode_pixels, content), told(decode, content)) for content in damaged]
        assert all(np.array_equal(ours, theirs) for ours, theirs in outcomes)
        assert 10 < sum(isinstance(ours, str) for ours, _ in outcomes) < 90, "some are refused and some are not"


def test_refusals_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(encoded(colours())[:900])
    with pytest.raises(ImageError, match=r"cut\.jpg: does not decode"):
        decode_pixels(tmp_path / "cut.jpg")
    with pytest.raises(ImageError, match=r"absent\.jpg: there is no such file"):
        decode_pixels(tmp_path / "absent.jpg")
