"""The closed table of backbones, cut into named stages: torchvision's networks without classifiers, and those of texts."""

from heads.backbones.blank import skeleton_stages
from heads.backbones.costs import StageCost, count_costs
from heads.backbones.table import BACKBONES, Backbone, row_of
from heads.backbones.tokens import tokens_to_map
from heads.backbones.weights import backbone_of, build_stages, check_weights, imagenet_weights, sized, state_of, weights_digest

__all__ = [
    "BACKBONES",
    "Backbone",
    "StageCost",
    "backbone_of",
    "build_stages",
    "check_weights",
    "count_costs",
    "imagenet_weights",
    "row_of",
    "sized",
    "skeleton_stages",
    "state_of",
    "tokens_to_map",
    "weights_digest",
]
