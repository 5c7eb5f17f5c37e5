"""The choices of a plan: backbones with their stages, modality and sizes; tasks with their heads, measures and words.

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

# What kind of sample a backbone reads; `heads.data.modalities` holds what differs between them.
Modality = Literal["image", "text"]
# How pixels between pixels are found when an image is resized, as a backbone's published weights saw it.
Interpolation = Literal["bilinear", "bicubic"]
# Fit fields that mean something to samples of one modality alone; variants of others leave them at their defaults.
FIT_FIELDS_OF: Mapping[Modality, frozenset[str]] = {
    "image": frozenset(("image_size_px", "augment", "flip", "channels_last", "mixup", "cutmix")),
    "text": frozenset(("max_tokens", "pooling", "word_dropout", "token_masking")),
}

# Stage names of each backbone, front to back; `heads.backbones` builds exactly these.
STEM_AND_4 = ("stem", "stage1", "stage2", "stage3", "stage4")
STEM_7_TOP = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "top")
RESNET = ("stem", "layer1", "layer2", "layer3", "layer4")
BACKBONE_STAGES: dict[str, tuple[str, ...]] = {
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
IMAGE_BACKBONES = tuple(BACKBONE_STAGES)
TEXT_BACKBONES = ("bert", "transformer", "textcnn", "lstm", "gru", "rnn")
# A plan says `bert`; variants say of what size, which their weights decide (`heads.bert_size`).
MAX_BERT_LAYERS = 48
BACKBONE_STAGES |= {
    "bert": ("embeddings", *(f"layer{number}" for number in range(1, MAX_BERT_LAYERS + 1))),
    "transformer": ("embeddings", "layer1", "layer2"),
    "textcnn": ("embeddings", "layer1"),
    "lstm": ("embeddings", "layer1"),
    "gru": ("embeddings", "layer1"),
    "rnn": ("embeddings", "layer1"),
}

MODALITY_OF: dict[str, Modality] = {name: "text" if name in TEXT_BACKBONES else "image" for name in BACKBONE_STAGES}


class ImageSizes(NamedTuple):
    """The sides of a square image in pixels that a backbone takes: every `step` from `least` to `most`."""

    least: int = 32
    most: int = 1024
    step: int = 1


# Under its least size a network has no features left. Vision transformers cut images into whole patches; MaxViT's windows and
# grids, and so its weights, are made for one size.
IMAGE_SIZES: Mapping[str, ImageSizes] = {name: ImageSizes() for name in IMAGE_BACKBONES} | {
    "alexnet": ImageSizes(least=63),
    "inception_v3": ImageSizes(least=75),
    "vit_b_16": ImageSizes(step=16),
    "vit_b_32": ImageSizes(step=32),
    "maxvit_t": ImageSizes(least=224, most=224),
}


def check_image_size(backbone: str, image_size_px: int) -> None:
    """Raises ValueError, with what is allowed, if the backbone does not take square images of this side."""
    least, most, step = IMAGE_SIZES[backbone]
    field = f"image_size_px {image_size_px}"
    if least == most != image_size_px:
        raise ValueError(f"{field} does not fit {backbone}, whose weights are made for one size; allowed: {least}")
    if image_size_px < least:
        raise ValueError(f"{field} is under the least size of {backbone}; allowed: {least} to {most}")
    if (rest := (image_size_px - least) % step) or image_size_px > most:
        nearest = [size for size in (image_size_px - rest, image_size_px - rest + step) if size <= most] or [most]
        every = f"every {step} px from {least} to {most}" if step > 1 else f"{least} to {most}"
        raise ValueError(f"{field} does not fit {backbone}; allowed: {every}; nearest: {' or '.join(map(str, nearest))}")


Task = Literal["classification", "multilabel", "segmentation", "tagging"]
COUNTED = ("f1_macro", "f1_micro", "f1_weighted", "precision_macro", "recall_macro")
RANKED = ("auroc", "average_precision")


CLASS_DESIGNS = ("linear", "mlp", "attention", "cosine")
# One class a sample, a set of labels a sample, one class a pixel, or one tag a word.
Tells = Literal["class", "labels", "pixels", "tags"]


@dataclass(frozen=True)
class TaskFacts:
    """A task's names and texts.

    `tells` is what an answer consists of, by which cells are read and counted, answers judged and drawn. `designs` are the heads
    that a plan may name. `primary` is the measure that judges an epoch, and that ranks and promotes if a plan names none;
    `promotable` are those that promotion may go by, higher being better, `drawn` those that a learning curve shows beside the
    loss. A card says what a model of the task does (`purpose`), what it answers (`answer`) and what it cannot do (`limit`).
    """

    tells: Tells
    designs: tuple[str, ...]
    primary: str
    promotable: tuple[str, ...]
    drawn: tuple[str, ...]
    purpose: str
    answer: str
    limit: str


TASK_FACTS: Mapping[Task, TaskFacts] = {
    "classification": TaskFacts(
        tells="class",
        designs=CLASS_DESIGNS,
        primary="accuracy",
        promotable=("accuracy", "top5", *COUNTED, *RANKED),
        drawn=("accuracy", "f1_macro"),
        purpose="tells what class {sample} is of",
        answer="a `Prediction`: `label`, its `probability`, and every class's in `probabilities`",
        limit="answers with one of its classes whatever it is shown",
    ),
    "multilabel": TaskFacts(
        tells="labels",
        designs=CLASS_DESIGNS,
        primary="average_precision",
        promotable=("accuracy", *COUNTED, *RANKED),
        drawn=("average_precision", "f1_macro"),
        purpose="tells which labels {sample} has",
        answer="`Labels`: `labels`, those whose probability reaches their threshold, and every label's in `probabilities`",
        limit="answers with any number of its labels, none included",
    ),
    "segmentation": TaskFacts(
        tells="pixels",
        designs=("fcn", "deeplabv3", "lraspp", "unet", "fpn"),
        primary="miou",
        promotable=("miou", "pixel_accuracy", "dice"),
        drawn=("miou", "dice"),
        purpose="tells the class of every pixel",
        answer="a `MaskPrediction` of the image's own size: `mask`, an array of the values above, and each one's `shares`; "
        '`picture().save("mask.png")` writes it as it is',
        limit="gives every pixel one of its values",
    ),
    "tagging": TaskFacts(
        tells="tags",
        designs=("linear", "mlp", "crf"),
        primary="span_f1",
        promotable=("span_f1",),
        drawn=("span_f1", "token_accuracy"),
        purpose="finds the spans of words that name something",
        answer="a `TagsPrediction`: the `words` of the text, a tag of each in `tags`, and the `spans`, each with its `type`, "
        "its `text`, and the numbers of its words from `start` to before `end`",
        limit="tags the parts that white space leaves, with no type but its own, and as O what it does not read",
    ),
}
HEAD_DESIGNS: Mapping[Task, tuple[str, ...]] = {task: facts.designs for task, facts in TASK_FACTS.items()}
