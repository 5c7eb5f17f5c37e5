"""The stages of each backbone by name, what kind of sample it reads, and the sizes of images that it takes. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

# What kind of sample a backbone reads; `heads.data.modalities` holds what differs between them.
Modality = Literal["image"]
# Fit fields that mean something to samples of one modality alone; variants of others leave them at their defaults.
FIT_FIELDS_OF: Mapping[Modality, frozenset[str]] = {
    "image": frozenset(("image_size_px", "augment", "flip", "channels_last", "mixup", "cutmix")),
}

# Stage names of each backbone, front to back; `heads.backbones` builds exactly these.
STEM_AND_4 = ("stem", "stage1", "stage2", "stage3", "stage4")
STEM_7_TOP = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "top")
RESNET = ("stem", "layer1", "layer2", "layer3", "layer4")
BACKBONE_STAGES: Mapping[str, tuple[str, ...]] = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "mobilenet_v2": STEM_7_TOP,
    "mobilenet_v3_small": ("stem", "stage1", "stage2", "stage3", "stage4", "top"),
    "mobilenet_v3_large": ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "top"),
    "squeezenet1_1": ("stem", "stage1", "stage2", "stage3"),
    "efficientnet_b0": STEM_7_TOP,
    "shufflenet_v2_x1_0": ("stem", "stage2", "stage3", "stage4", "top"),
    "convnext_tiny": STEM_AND_4,
    "alexnet": ("stem", "stage1", "stage2"),
    "vgg11": STEM_AND_4,
    "vgg11_bn": STEM_AND_4,
    "vgg16": STEM_AND_4,
    "vgg16_bn": STEM_AND_4,
    "resnet101": RESNET,
    "resnext50_32x4d": RESNET,
    "wide_resnet50_2": RESNET,
    "inception_v3": ("stem", "stage1", "stage2", "stage3"),
    "googlenet": ("stem", "stage1", "stage2", "stage3"),
    "densenet121": STEM_AND_4,
    "mnasnet1_0": STEM_7_TOP,
    "efficientnet_b3": STEM_7_TOP,
    "efficientnet_v2_s": ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "top"),
    "regnet_y_400mf": STEM_AND_4,
    "regnet_y_8gf": STEM_AND_4,
    "convnext_base": STEM_AND_4,
    "vit_b_16": STEM_AND_4,
    "vit_b_32": STEM_AND_4,
    "swin_t": STEM_AND_4,
    "swin_v2_t": STEM_AND_4,
    "maxvit_t": STEM_AND_4,
}

MODALITY_OF: Mapping[str, Modality] = dict.fromkeys(BACKBONE_STAGES, "image")


class ImageSizes(NamedTuple):
    """The sides of a square image in pixels that a backbone takes: every `step` from `least` to `most`."""

    least: int = 32
    most: int = 1024
    step: int = 1


# Under its least size a network has no features left. Vision transformers cut images into whole patches; MaxViT's windows and
# grids, and so its weights, are made for one size.
IMAGE_SIZES: Mapping[str, ImageSizes] = {name: ImageSizes() for name in BACKBONE_STAGES} | {
    "alexnet": ImageSizes(least=63),
    "inception_v3": ImageSizes(least=75),
    "vit_b_16": ImageSizes(step=16),
    "vit_b_32": ImageSizes(step=32),
    "maxvit_t": ImageSizes(least=224, most=224),
}
