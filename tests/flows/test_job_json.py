"""What a job is asked and what it answers, through its files."""

from __future__ import annotations

from pathlib import Path

from flows import job
from flows.files import write_json
from flows.job.job import read_job
from flows.places import Folder, StoredFile
from flows.records import DataVersion, Mask, Sample, ScoreTable, Weights, Work, Workers
from heads.spec import Head, Variant
from heads.tasks.rows import Scored


def test_an_order_carries_its_samples_with_their_masks_and_classes(tmp_path: Path) -> None:
    labels = {"breed": "a", "mask": "masks/1.png"}
    samples = (
        Sample("1" * 32, "images/1.png", "train", labels, "g"),
        Sample("2" * 32, "images/2.png", "val", {"breed": None, "mask": None}),
        Sample("3" * 32, "images/3.png", "test", {"breed": "a", "mask": "masks/3.png"}),
    )
    masks = {f"masks/{i}.png": Mask(str(i) * 32, {0: 7, 255: i}) for i in (1, 3)}
    version = DataVersion("d" * 32, "r" * 40, samples, tmp_path / "data", (tmp_path / "cache",), masks)
    classes = {"breed": ["a", "b"], "mask": ["0", "255"]}
    plain = Work("p", Variant(backbone="resnet18", heads=(Head(target="breed"),)), Weights("w", tmp_path / "w.pth"))
    asked = job.Job("train", "k", "tiny", tmp_path, version, classes, Workers(), baseline=plain, target="breed", counted="words")
    found = read_job(job.write_job(asked))
    assert found.version.samples == samples[:2]
    assert found.version.masks == {"masks/1.png": masks["masks/1.png"]}
    assert found.classes == classes
    assert (found.baseline, found.target, found.counted) == (plain, "breed", "words")
    assert (found.version.digest, found.version.data, found.version.objects) == (version.digest, version.data, version.objects)


def test_an_order_says_the_fewest_workers_only_where_there_is_a_range(tmp_path: Path) -> None:
    version = DataVersion("d" * 32, "r" * 40, (), tmp_path / "data", ())
    for key, workers in (("fixed", Workers(3)), ("range", Workers(3, least=2))):
        folder = job.write_job(job.Job("train", key, "tiny", tmp_path, version, {"a": ("x", "y")}, workers))
        assert read_job(folder).workers == workers
        assert ('"least"' in Path(folder.job_file).read_text()) == (key == "range"), "job files of before stay as they were"


def test_an_order_says_that_its_driver_trains_only_where_it_does(tmp_path: Path) -> None:
    version = DataVersion("d" * 32, "r" * 40, (), tmp_path / "data", ())
    for key, in_driver in (("group", False), ("driver", True)):
        asked = job.Job("train", key, "tiny", tmp_path, version, {"a": ("x", "y")}, Workers(), in_driver=in_driver)
        folder = job.write_job(asked)
        assert read_job(folder).in_driver == in_driver
        assert ("in_driver" in Path(folder.job_file).read_text()) == in_driver, "job files of before stay as they were"


def test_an_order_of_before_says_by_another_word_who_is_screened(tmp_path: Path) -> None:
    version = DataVersion("d" * 32, "r" * 40, (), tmp_path / "data", ())
    works = [
        Work(key, Variant(backbone="resnet18", heads=(Head(target="a"),)), Weights("none"), key == "w1") for key in ("w1", "w2")
    ]
    folder = job.write_job(job.Job("train", "k", "tiny", tmp_path, version, {"a": ("x", "y")}, Workers(), works=tuple(works)))
    folder.place.write("job.json", Path(folder.job_file).read_text().replace("is_screened", "in_contest"))
    assert [work.is_screened for work in read_job(folder).works] == [True, False]


def test_a_score_table_is_read_with_its_tasks_probabilities_and_pixels(tmp_path: Path) -> None:
    rows = [
        ["1" * 32, "breed", "a", "b", 0.75, {"a": 0.25, "b": 0.75}, []],
        ["1" * 32, "mask", "masks/1.png", "", 0.5, {}, [["1", "1", 32], ["1", "2", 32]]],
    ]
    tasks = {"breed": "classification", "mask": "segmentation"}
    table = {"bundle_digest": "b", "data_version": "d", "rows": rows, "metrics": {"breed/accuracy": 0.0}, "tasks": tasks}
    write_json(tmp_path / "scores.json", table)
    assert job.read_scores(StoredFile(Folder(tmp_path), "scores.json")) == ScoreTable(
        "b",
        "d",
        (
            Scored("1" * 32, "breed", "a", "b", 0.75, {"a": 0.25, "b": 0.75}),
            Scored("1" * 32, "mask", "masks/1.png", "", 0.5, {}, (("1", "1", 32), ("1", "2", 32))),
        ),
        {"breed/accuracy": 0.0},
        tasks,
    )
