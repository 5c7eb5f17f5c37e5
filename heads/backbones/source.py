"""Where a backbone's published weights come from, and the images that they were trained to see."""

from __future__ import annotations

import re
from dataclasses import dataclass

from heads.backbones.torchvision_lean import WeightsEnum

# As torchvision's own notes on its pretrained models say; nothing more is known of these files.
LICENCE = (
    "Its first weights are {weights} of torchvision's {backbone}, trained on ImageNet. torchvision's code has the BSD-3-Clause "
    "licence; its pretrained weights may have terms of their own, derived from the data set that they were trained on, and "
    "torchvision leaves it to whoever uses them to find out whether that is permitted."
)


@dataclass(frozen=True)
class SeenImages:
    """How the images of a pretraining were prepared: the shorter side resized, a square cut out, channels normalised.

    `mean` and `std` are of red, green and blue between 0 and 1.
    """

    image_size_px: int
    resize_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Source:
    """A published file of weights; `digest` begins its sha256 in hex, `images` says how its training images were prepared."""

    name: str
    url: str
    digest: str
    images: SeenImages


def imagenet(weights: type[WeightsEnum]) -> Source:
    """The first version of torchvision's ImageNet weights, IMAGENET1K_V1, even if there is a V2.

    V2's label smoothing and mixup raise the ImageNet score but leave features that a frozen linear head reads worse
    (Kornblith et al., "Why Do Better Loss Functions Lead to Less Transferable Features?", NeurIPS 2021).
    """
    published = weights["IMAGENET1K_V1"]
    ending = re.search(r"-([0-9a-f]{8,})\.pth$", published.url)
    assert ending, published.url
    seen = published.transforms()
    return Source(
        name=published.name,
        url=published.url,
        digest=ending.group(1),
        images=SeenImages(int(seen.crop_size[0]), int(seen.resize_size[0]), tuple(seen.mean), tuple(seen.std)),
    )
