"""What trunks are, for people who look at the feature store: a few facts beside each shelf, by its id."""

from __future__ import annotations

from heads.features import FeatureStore
from heads.trunks.trunk import Trunk


def name_trunk(store: FeatureStore, trunk: Trunk) -> None:
    """Leaves word of what a trunk is beside its shelf; a store that is read-only stays as it is."""
    size = trunk.preprocess.image_size_px
    told = {"backbone": trunk.backbone, "weights": trunk.weights, "image_size_px": size, "whole": trunk.preprocess.whole}
    views = "plain" if trunk.augment == "none" and not trunk.flip else trunk.augment + (", flip" if trunk.flip else "")
    store.describe(trunk.id, told | {"dtype": trunk.dtype, "views": views})
