"""Any image file as an upright RGB image, any mask as an upright table of values, or a clear refusal. No torch here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from heads.data.mask_values import GREY_STEPS, lossy_format, raw_mode, value_step
from heads.errors import ImageError

MAX_PIXELS = 100_000_000
EXIF_ORIENTATION = 0x0112
IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


def decode(source: Path | str | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """An image from its file, its bytes or Pillow, as RGB and upright, transparency laid on white, one frame of an animation.

    The content tells the format, so a file needs no extension. Raises ImageError, naming the file or `name`, if it
    is missing, cut short, of no known format, above 100 million pixels or of floating point.
    """
    with opened(source, name) as image:
        return upright_rgb(image)


def decode_mask(
    source: Path | bytes, image: Path | bytes | None = None, name: str | None = None, *, as_stored: bool = False
) -> NDArray[np.int32]:
    """The values (H, W) of a mask of one channel, upright: indices of a palette, greys of few bits as they are stored.

    `image` is the image it belongs to: a mask of the size in which that is stored, but not of its upright size, is turned as
    the image is. If these sizes are equal (half turns, mirrored and square images), it is turned if it was drawn `as_stored` and
    has no turn of its own. Raises ImageError, naming the file or `name`, if the mask does not decode, has a lossy format,
    several channels, fractions or values outside 0 to 65535, or another size than the image.
    """
    with opened(source, name) as mask:
        if (lossy := lossy_format(mask, source)) is not None:
            raise ImageError(
                f"is a picture in {lossy}, which does not keep values as they are: their shades would count as classes; "
                "save masks as PNG, from what they were made of"
            )
        if (num_channels := len(mask.getbands())) != 1:
            raise ImageError(
                f"has {num_channels} channels; a mask has one, whose value is the class: save masks as PNG, of greys or a palette"
            )
        step, own = value_step(mask), orientation_of(mask)
        mask.load()
        upright = _turn(mask, orientation_of(mask))
        values = np.asarray(upright if image is None else _turned_with(upright, image, as_stored and own not in UPRIGHT))
        if not np.issubdtype(values.dtype, np.integer) and values.dtype != np.bool_:
            raise ImageError(f"has pixels of mode {mask.mode}; a mask has whole numbers, of 8 or 16 bits")
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise ImageError(f"has values from {values.min()} to {values.max()}; allowed: 0 to {0xFFFF}")
        return values.astype(np.int32) if step == 1 else np.rint(values / step).astype(np.int32)


@contextmanager
def opened(source: Path | str | bytes | Image.Image, name: str | None) -> Iterator[Image.Image]:
    """The image, opened until the block ends; all that goes wrong with it until then is an ImageError that names it."""
    title = name or (str(source) if isinstance(source, Path | str) else f"a picture given as {type(source).__name__}")
    try:
        with warnings.catch_warnings():
            # What Pillow warns of (odd EXIF, several palettes) does not keep it from reading; sizes are checked below.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                yield _checked(source)
            else:
                with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats()) as image:
                    yield _checked(image)
    except ImageError as error:
        raise ImageError(f"{title}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{title}: there is no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{title}: is no image in a format that Pillow reads") from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes: struct.error, KeyError, SyntaxError ...
        raise ImageError(f"{title}: does not decode as an image ({error or type(error).__name__})") from error


@cache
def formats() -> tuple[str, ...]:
    """The formats that may be opened, by Pillow's names: all that it reads but EPS."""
    Image.init()
    # Reading EPS starts Ghostscript, a whole language, on the file.
    return tuple(name for name in Image.OPEN if name != "EPS")


def _checked(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} px are more than {MAX_PIXELS:,} pixels; scale the picture down")
    return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB and upright, transparency laid on white; raises what Pillow raises if it does not load."""
    transparent = _transparent_value(image)
    # Loaded first: Pillow turns a TIFF itself while it loads it, and then takes its tag away.
    image.load()
    orientation = orientation_of(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, transparent)
    elif image.has_transparency_data:
        if transparent is not None:
            image = image.copy()
            image.info["transparency"] = transparent
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    upright = _turn(image.convert("RGB"), orientation)
    # Without the tag, by which the next reader would turn it again.
    upright.info = {}
    return upright


def orientation_of(image: Image.Image) -> int | None:
    """The EXIF tag that says how to turn an image upright; of a TIFF only until it is loaded."""
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # A damaged EXIF block does not make the image unreadable.
        return None


def sizes_of(image: Image.Image) -> tuple[tuple[int, int], tuple[int, int], int | None]:
    """The (width, height) of an image opened but not loaded, as stored and as it stands upright, and its orientation tag."""
    orientation = orientation_of(image)
    tags = getattr(image, "tag_v2", {})
    # Of a TIFF Pillow gives the upright size, of other formats the stored one.
    stored = (tags[IMAGE_WIDTH], tags[IMAGE_LENGTH]) if IMAGE_WIDTH in tags and IMAGE_LENGTH in tags else image.size
    return stored, stored[::-1] if orientation in SIDEWAYS else stored, orientation


def _turned_with(mask: Image.Image, image: Path | bytes, as_stored: bool) -> Image.Image:
    """The mask, turned as its image is if it fits in no other way, or if it fits either way and is drawn `as_stored`."""
    with opened(image, "its image") as file:
        stored, upright, orientation = sizes_of(file)
    if mask.size == upright and not (as_stored and mask.size == stored):
        return mask
    if mask.size == stored:
        return _turn(mask, orientation)
    raise ImageError(
        f"is {mask.width}x{mask.height} px, the image {upright[0]}x{upright[1]} px; a mask has the size of its image"
    )


def _turn(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _transparent_value(image: Image.Image) -> int | tuple[int, ...] | None:
    """The transparent grey or colour of a PNG on the scale of its loaded pixels; None if Pillow gives it right."""
    value, raw = image.info.get("transparency"), raw_mode(image)
    if isinstance(value, int) and (raw in GREY_STEPS or image.mode.startswith("I")):
        # It is given in the file's own few bits, the pixels are scaled to eight.
        return value * GREY_STEPS.get(raw, 1)
    if isinstance(value, tuple) and raw.startswith("RGB;16"):
        return tuple(channel >> 8 for channel in value)
    return None


def _eight_bits(image: Image.Image, transparent: int | tuple[int, ...] | None) -> Image.Image:
    """A 16-bit grey image at 8 bits, white where it is transparent; Pillow's own conversion clips it to white."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ImageError(f"pixels of mode {image.mode} have no known range; save the picture with 8 or 16 bits a channel")
    greys = np.round(pixels / 257.0).astype(np.uint8)
    return Image.fromarray(greys if transparent is None else np.where(pixels == transparent, np.uint8(255), greys))
