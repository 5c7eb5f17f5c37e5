"""Images are mixed in pairs, and every label counts once, wherever its image went."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from heads.data.labels import MISSING_LABEL
from heads.spec import Fit
from heads.training.metrics import MetricAccumulator
from heads.training.mixup import Mix, draw_mix

IMAGES = torch.rand(6, 3, 20, 31, generator=torch.Generator().manual_seed(0))
CUTMIX = Fit(cutmix=1)


def test_nothing_is_mixed_unless_asked_for() -> None:
    assert draw_mix(Fit(), IMAGES, epoch=0, step=0) is None


@pytest.mark.parametrize("fit", [Fit(mixup=0.4), CUTMIX, Fit(mixup=0.2, cutmix=1)])
def test_a_mix_depends_on_seed_epoch_and_step_alone(fit: Fit) -> None:
    def mixed(fit: Fit, epoch: int, step: int) -> torch.Tensor:
        mix = draw_mix(fit, IMAGES, epoch=epoch, step=step)
        assert mix is not None
        return mix.images(IMAGES)

    torch.manual_seed(1)
    one = mixed(fit, 2, 3)
    torch.manual_seed(2)
    assert torch.equal(one, mixed(fit, 2, 3))
    others = [mixed(fit, 2, 4), mixed(fit, 3, 3), mixed(fit.model_copy(update={"seed": 1}), 2, 3)]
    assert not any(torch.equal(one, other) for other in others)


def test_mixup_blends_images_and_labels_by_the_same_share() -> None:
    mix = Mix(torch.tensor([5, 0, 1, 2, 3, 4]), 0.3)
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    mixed = mix.images(images)
    torch.testing.assert_close(mixed, IMAGES * 0.3 + IMAGES.roll(1, 0) * 0.7)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    soft = F.one_hot(labels, 3) * 0.3 + F.one_hot(labels[mix.partners], 3) * 0.7
    losses = MetricAccumulator({"kind": "classification"}).add({"kind": logits}, {"kind": labels}, torch.ones(6), mix)
    torch.testing.assert_close(losses["kind"], F.cross_entropy(logits, soft, reduction="sum"))


def test_cutmix_patches_a_box_whose_area_is_the_partners_share() -> None:
    shares = []
    for step in range(200):
        mix = draw_mix(CUTMIX, IMAGES, epoch=0, step=step)
        assert mix is not None
        mixed = mix.images(IMAGES)
        own, others = (mixed == IMAGES).all(dim=1), (mixed == IMAGES[mix.partners]).all(dim=1)
        assert (own | others).all()
        moved = mix.partners != torch.arange(6)
        assert own[moved].double().mean(dim=(1, 2)).tolist() == pytest.approx([mix.share] * int(moved.sum()))
        shares.append(mix.share)
    assert min(shares) < 0.5
    assert max(shares) > 0.9


def test_shares_of_mixup_follow_their_beta_distribution() -> None:
    mixes = [draw_mix(Fit(mixup=0.4), IMAGES, epoch=0, step=step) for step in range(2000)]
    shares = np.array([mix.share for mix in mixes if mix])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.25 / 1.8, abs=0.01)


def test_both_at_once_take_turns() -> None:
    mixes = [draw_mix(Fit(mixup=0.4, cutmix=1), IMAGES, epoch=0, step=step) for step in range(400)]
    assert 0.4 < np.mean([mix.box is None for mix in mixes if mix]) < 0.6


def test_every_label_counts_once_whatever_is_missing_or_padding() -> None:
    labels = {"kind": torch.tensor([0, 2, MISSING_LABEL, 1, 0, 0])}
    weights = torch.tensor([1.0, 1, 1, 1, 1, 0])
    # Alike for all images, so that the sum depends on the labels alone.
    logits = {"kind": torch.tensor([[0.3, -1.0, 2.0]]).expand(6, 3)}
    plain, mixed = MetricAccumulator({"kind": "classification"}), MetricAccumulator({"kind": "classification"})
    whole = plain.add(logits, labels, weights)["kind"]
    for step in range(10):
        mix = draw_mix(Fit(mixup=1), IMAGES, epoch=0, step=step)
        torch.testing.assert_close(MetricAccumulator({"kind": "classification"}).add(logits, labels, weights, mix)["kind"], whole)
    mixed.add(logits, labels, weights, mix)
    assert mixed.totals()["kind"].num_labels == plain.totals()["kind"].num_labels == 4
