"""The nets of mask heads, by design: from feature maps of one stage or several to a map of logits for each class.

None normalises its inputs, only what it has convolved, and classifiers start as torch's convolutions do. On frozen MobileNetV2
and SqueezeNet after four epochs of half of CamVid (two seeds), norms of the inputs cost `lraspp` 0.02-0.05 mean IoU and
did nothing for `fcn`; a classifier that starts near zero cost 0.01 to 0.05 in three of these four cases and gained 0.01 in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.backbones.row import Backbone
from heads.backbones.tokens import tokens_to_map

ASPP_CHANNELS = 256
# The rates of Chen et al. at a stride of 16 px are 6, 12, 18, and twice these at 8: the same reach in pixels of the image.
ASPP_REACH_PX = (96, 192, 288)
LRASPP_CHANNELS = 128
LRASPP_LOW_STRIDE = 8
FPN_CHANNELS = 128
FPN_LEAST_STRIDE = 4
UNET_MOST_CHANNELS, UNET_LEAST_CHANNELS = 256, 32


class MapNorm(nn.BatchNorm2d):
    """BatchNorm that normalises a single value per channel by its running statistics, since one value has no variance.

    So a pooled map, or a map of one position, can be trained on in a batch of one.
    """

    def forward(self, features: Tensor) -> Tensor:
        if self.training and features.shape[0] * features.shape[2] * features.shape[3] == 1:
            return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(features)


class ConvBlock(nn.Sequential):
    """A convolution that keeps the size of its maps, norm, ReLU."""

    def __init__(self, channels: int, num_outputs: int, kernel_size: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(channels, num_outputs, kernel_size, padding=padding, dilation=dilation, bias=False),
            MapNorm(num_outputs),
            nn.ReLU(inplace=True),
        )


class FCN(nn.Module):
    """One 3 x 3 convolution to a quarter of the channels and a classifier of each position, as torchvision's FCNHead.

    After Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        (width,) = channels
        self.layers = nn.Sequential(
            ConvBlock(width, width // 4, kernel_size=3), nn.Dropout(0.1), nn.Conv2d(width // 4, num_classes, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(_as_map(features))
        return logits


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: maps (N, C, H, W) seen at several rates and as a whole, as (N, 256, H, W).

    After Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (arXiv:1706.05587).
    """

    def __init__(self, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        views = [ConvBlock(channels, ASPP_CHANNELS), *(ConvBlock(channels, ASPP_CHANNELS, 3, dilation=rate) for rate in rates)]
        self.views = nn.ModuleList(views)
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBlock(channels, ASPP_CHANNELS))
        self.project = nn.Sequential(ConvBlock(ASPP_CHANNELS * (len(views) + 1), ASPP_CHANNELS), nn.Dropout(0.5))

    def forward(self, features: Tensor) -> Tensor:
        whole = self.whole(features).expand(-1, -1, *features.shape[2:])
        projected: Tensor = self.project(torch.cat([*(view(features) for view in self.views), whole], dim=1))
        return projected


class DeepLabV3(nn.Module):
    """ASPP, a 3 x 3 convolution and a classifier of positions; its rates reach as far in the image as Chen's at any stride."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        rates = [max(1, reach // strides[0]) for reach in ASPP_REACH_PX]
        self.layers = nn.Sequential(
            ASPP(channels[0], rates), ConvBlock(ASPP_CHANNELS, ASPP_CHANNELS, 3), nn.Conv2d(ASPP_CHANNELS, num_classes, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(_as_map(features))
        return logits


class LRASPP(nn.Module):
    """Lite reduced ASPP: deep maps gated by what the whole image holds, and a glance at finer ones, as torchvision's LRASPPHead.

    After Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        low, high = channels
        self.block = ConvBlock(high, LRASPP_CHANNELS)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, LRASPP_CHANNELS, 1, bias=False), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(LRASPP_CHANNELS, num_classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        low, high = _as_map(low), _as_map(high)
        gated = _resized(self.block(high) * self.gate(high), low)
        logits: Tensor = self.low_classifier(low) + self.high_classifier(gated)
        return logits


class UNet(nn.Module):
    """A decoder from the last stage to the finest: at each, two 3 x 3 convolutions join the features so far and its own.

    After Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015; maps are resized
    to the next stage's own size, whatever that is, and padded, not cropped.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        skips = channels[-2::-1]
        widths = [max(UNET_LEAST_CHANNELS, UNET_MOST_CHANNELS >> depth) for depth in range(len(skips))]
        # What comes out at a depth goes in at the next, beside its skip.
        joined = [before + skip for before, skip in zip([channels[-1], *widths[:-1]], skips, strict=True)]
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvBlock(before, width, 3), ConvBlock(width, width, 3))
            for before, width in zip(joined, widths, strict=True)
        )
        self.classifier = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        decoded, *skips = map(_as_map, reversed(features))
        for block, skip in zip(self.blocks, skips, strict=True):
            decoded = block(torch.cat([_resized(decoded, skip), skip], dim=1))
        logits: Tensor = self.classifier(decoded)
        return logits


class FPN(nn.Module):
    """To each stage's features all deeper ones are added; the sums are smoothed and merged at the finest resolution.

    After Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, merged as in Kirillov et al., "Panoptic Feature
    Pyramid Networks", CVPR 2019, with one convolution a level, not one a doubling, and 128 channels throughout.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, FPN_CHANNELS, 1, bias=False), MapNorm(FPN_CHANNELS)) for width in channels
        )
        self.smoothings = nn.ModuleList(ConvBlock(FPN_CHANNELS, FPN_CHANNELS, 3) for _ in channels)
        self.classifier = nn.Conv2d(FPN_CHANNELS, num_classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        levels = [lateral(_as_map(rows)) for lateral, rows in zip(self.laterals, features, strict=True)]
        for number in reversed(range(len(levels) - 1)):
            levels[number] = levels[number] + F.interpolate(levels[number + 1], size=levels[number].shape[2:], mode="nearest")
        smoothed = [smoothing(level) for smoothing, level in zip(self.smoothings, levels, strict=True)]
        logits: Tensor = self.classifier(sum(_resized(level, smoothed[0]) for level in smoothed))
        return logits


DESIGNS: Mapping[str, Callable[[Sequence[int], Sequence[int], int], nn.Module]] = {
    "fcn": FCN,
    "deeplabv3": DeepLabV3,
    "lraspp": LRASPP,
    "unet": UNet,
    "fpn": FPN,
}


def taps(design: str, backbone: Backbone) -> tuple[int, ...]:
    """The numbers of the stages whose features a decoder of this design takes, front to back.

    `fcn` and `deeplabv3` take the last stage; `lraspp` also the last one at a stride of 8 px, or at the nearest to that;
    `unet` the last one at each stride, `fpn` at each from 4 px on. If all strides are equal, these two take all stages.
    """
    last = len(backbone.strides) - 1
    match design:
        case "lraspp":
            return _low_stage(backbone), last
        case "unet":
            return _pyramid(backbone, 1)
        case "fpn":
            return _pyramid(backbone, FPN_LEAST_STRIDE)
    return (last,)


def build_decoder(design: str, backbone: Backbone, num_classes: int) -> nn.Module:
    """A net from the features of its taps, maps (N, C, H, W) or tokens (N, 1 + L, C) of a square, one argument each, to logits
    (N, `num_classes`, H', W') at the size of the finest."""
    numbers = taps(design, backbone)
    return DESIGNS[design]([backbone.channels[n] for n in numbers], [backbone.strides[n] for n in numbers], num_classes)


def _low_stage(backbone: Backbone) -> int:
    earlier = backbone.strides[:-1]
    nearest = min(earlier, key=lambda stride: abs(math.log2(stride / LRASPP_LOW_STRIDE)))
    return max(number for number, stride in enumerate(earlier) if stride == nearest)


def _pyramid(backbone: Backbone, least_stride: int) -> tuple[int, ...]:
    if len(set(backbone.strides)) == 1:
        return tuple(range(len(backbone.strides)))
    following = [*backbone.strides[1:], None]
    pairs = zip(backbone.strides, following, strict=True)
    return tuple(number for number, (stride, after) in enumerate(pairs) if stride != after and stride >= least_stride)


def _as_map(features: Tensor) -> Tensor:
    if features.ndim == 4:
        return features
    side = math.isqrt(features.shape[1] - 1)
    assert side**2 == features.shape[1] - 1, f"{features.shape[1] - 1} patches are no square"
    return tokens_to_map(features, side, side)


def _resized(features: Tensor, like: Tensor) -> Tensor:
    if features.shape[2:] == like.shape[2:]:
        return features
    return F.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)
