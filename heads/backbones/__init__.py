"""The closed table of backbones: torchvision's networks without their classifiers, cut into named stages."""

from heads.backbones.blank import skeleton_stages
from heads.backbones.costs import StageCost, count_costs
from heads.backbones.table import BACKBONES, Backbone
from heads.backbones.tokens import tokens_to_map
from heads.backbones.weights import backbone_of, build_stages, check_weights, imagenet_weights, state_of, weights_digest

__all__ = [
    "BACKBONES",
    "Backbone",
    "StageCost",
    "backbone_of",
    "build_stages",
    "check_weights",
    "count_costs",
    "imagenet_weights",
    "skeleton_stages",
    "state_of",
    "tokens_to_map",
    "weights_digest",
]
