"""What a killed worker or driver cost, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows import job
from flows.job.training import interruptions
from flows.job.training.checkpoint_note import CheckpointNote
from flows.records import DataVersion, Weights, Work, Workers
from flows.work_records import EpochRecord
from heads.spec import Fit, Head, Variant

VARIANT = Variant(
    backbone="mobilenet_v2",
    heads=(Head(target="label", task="classification", design="linear"),),
    freeze="none",
    fit=Fit(epochs=9),
)
WORK = Work("w1", VARIANT, Weights("none", None))
TITLES = {"w1": "mobilenet_v2 linear"}


@pytest.fixture
def order(tmp_path: Path) -> job.Job:
    version = DataVersion("d1", "r1", (), tmp_path / "data", ())
    return job.Job("train", "k1", "pets", tmp_path, version, {"label": ("a", "b")}, Workers(), works=(WORK,))


def _progress(order: job.Job, epochs: int) -> None:
    order.work_folder(WORK).add_progress("w1", [EpochRecord(i, 0, {}, 0.5) for i in range(epochs)])


def test_the_line_says_the_epoch_the_checkpoint_and_the_seconds(order: job.Job) -> None:
    _progress(order, 2)
    checkpoint = CheckpointNote("w1", 1, 1000.0)
    told = interruptions.describe(order, [WORK], TITLES, checkpoint, who="A worker", begun=900.0, now=1014.0)
    assert told == "A worker died in epoch 3 of mobilenet_v2 linear; goes on from epoch 2's checkpoint: 14 s lost"


def test_without_a_checkpoint_all_since_the_group_began_is_lost(order: job.Job) -> None:
    _progress(order, 1)
    told = interruptions.describe(
        order, [WORK], TITLES, CheckpointNote("other", 7, 1000.0), who="A worker", begun=900.0, now=1014.0
    )
    assert told == "A worker died in epoch 2 of mobilenet_v2 linear, before its first checkpoint; it begins again: 114 s lost"


def test_before_the_first_epoch_stored_features_are_what_is_kept(order: job.Job) -> None:
    order.folder.write_stored(40, 0.0)
    order.folder.write_to_store(100)
    told = interruptions.describe(order, [WORK], TITLES, None, who="The driver", begun=900.0, now=914.0)
    assert told == "The driver of the training died before the first epoch; 40 of 100 samples' features are kept: 14 s lost"


def test_a_group_of_another_size_tells_how_many_workers_go_on(order: job.Job) -> None:
    order.folder.count_driver()
    for count in (2, 1, 3, 3):
        interruptions.begin_group(replace(order, workers=Workers(count)), [WORK], TITLES, None)
    fewer, more, same = order.folder.read_interruptions()
    assert fewer.startswith("A worker of the training died before the first epoch")
    assert fewer.endswith("s lost; 1 worker instead of 2")
    assert more.startswith("The worker group of the training was ended for a larger one before the first epoch")
    assert more.endswith("s lost; 3 workers instead of 1")
    assert same.endswith("s lost")


def test_the_first_group_tells_nothing_and_each_later_one_a_line(order: job.Job) -> None:
    order.folder.count_driver()
    interruptions.begin_group(order, [WORK], TITLES, None)
    assert order.folder.read_interruptions() == ()
    interruptions.begin_group(order, [WORK], TITLES, None)
    order.folder.count_driver()
    interruptions.begin_group(order, [WORK], TITLES, None)
    first, second = order.folder.read_interruptions()
    assert first.startswith("A worker of the training died")
    assert second.startswith("The driver of the training died")
    # A group that finds everything done, since it lost its last member at the very end, has lost nothing.
    interruptions.begin_group(replace(order), [], TITLES, None)
    assert len(order.folder.read_interruptions()) == 2
