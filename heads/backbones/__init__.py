"""The closed table of backbones: torchvision's networks without their classifiers, cut into named stages."""

from heads.backbones.blank import skeleton_stages
from heads.backbones.costs import StageCost, count_costs
from heads.backbones.table import BACKBONES, Backbone
from heads.backbones.tokens import tokens_to_map
from heads.backbones.weights import build_stages, check_weights, imagenet_weights, weights_digest

__all__ = [
    "BACKBONES",
    "Backbone",
    "StageCost",
    "build_stages",
    "check_weights",
    "count_costs",
    "imagenet_weights",
    "skeleton_stages",
    "tokens_to_map",
    "weights_digest",
]
