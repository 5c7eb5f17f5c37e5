"""The pixels of any image file as a tensor: by torchvision's quicker decoder where it gives Pillow's pixels to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heads.data.decoding import SIDEWAYS, UPRIGHT, opened, orientation_of, upright_rgb
from heads.data.mask_values import raw_mode

# Of 8 bits, as they lie in the file: nothing but the grey's spreading over three channels is left to do.
PLAIN_MODES = ("L", "RGB")
# What is the wrong way round, rows (-2) or columns (-1), in an image that is stored turned, once it stands or lies as it should.
FLIPPED = {2: (-1,), 3: (-2, -1), 4: (-2,), 5: (), 6: (-1,), 7: (-2, -1), 8: (-2,)}


def decode_pixels(source: Path | bytes, name: str | None = None) -> Tensor:
    """The pixels of an image file or its bytes, those of `heads.data.decoding.decode`, as uint8 (1, 3, H, W), channels last.

    JPEG files of greys or RGB are decoded by torchvision, in about half the time. PNG files are not: on damaged ones its decoder
    ends the process. Raises ImageError in the same words as `decode`.
    """
    with opened(source, name) as image:
        is_plain = image.format == "JPEG" and image.mode in PLAIN_MODES and raw_mode(image) in PLAIN_MODES
        pixels = _decode_jpeg(source, orientation_of(image)) if is_plain else None
        return pixels_of(upright_rgb(image)) if pixels is None else pixels


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (1, 3, H, W), channels last."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).unsqueeze(0)


def _decode_jpeg(source: Path | bytes, orientation: int | None) -> Tensor | None:
    """The upright pixels of a JPEG file; None if torchvision does not decode it, so that Pillow may, or says why not."""
    # Here, so that `heads.backbones` is the first to import it, in its quick way.
    from torchvision.io import ImageReadMode, decode_jpeg

    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        stored: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return None
    pixels = stored.unsqueeze(0)
    if orientation in UPRIGHT:
        pixels = pixels.transpose(-2, -1) if orientation in SIDEWAYS else pixels
        pixels = pixels.flip(FLIPPED[orientation])
    return pixels.contiguous(memory_format=torch.channels_last)
