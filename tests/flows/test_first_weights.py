"""First weights that lie elsewhere: an object of a bucket, or the champion's backbone, brought to this machine once."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from flows import job, local_copies
from flows.errors import AskedWrongly, Unreachable
from flows.job.job import read_job
from flows.local_copies import keep_file
from flows.model_version import ModelVersion
from flows.places import Folder
from flows.plan import Plan, parse_plan
from flows.records import DataVersion, Sample, Verdict, Weights, Work, Workers
from flows.registry import Registry
from flows.registry.program import BUNDLE_FOLDER
from flows.settings import Settings, read_settings
from flows.stages.first_weights import find_weights
from flows.stages.planning import find_champion, make_work_plan, plan_work
from heads import bundle as bundles
from heads.backbones import BACKBONES, build_stages, check_weights, skeleton_stages, state_of, weights_digest
from heads.bundle.backbone import save_backbone
from heads.data.image_transforms import preprocess_for
from heads.errors import WeightsError
from heads.model.model import build_model
from heads.spec import Fit, Head, Variant
from tests import object_store

BACKBONE = "squeezenet1_1"
ADDRESS = "s3://pets/first/own weights.pth"
VARIANT = Variant(backbone=BACKBONE, heads=(Head(target="kind"),), fit=Fit(image_size_px=48))
CLASSES = {"kind": ("ant", "bee")}
YES = Verdict(True, ("it is better",), {"p": 0.01})


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[object_store.Bucket]]:
    with object_store.serving(monkeypatch) as served:
        yield served


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of first weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "first.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path


def asking(weights: object, **fields: object) -> Plan:
    return parse_plan(
        {"name": "pets", "backbones": [BACKBONE], "weights": weights, "freeze": "none", "fit": {"image_size_px": 48}} | fields
    )


def found(named: str) -> Weights:
    return find_weights(asking(named), BACKBONE)


def version(digest: str = "d" * 32) -> DataVersion:
    samples = tuple(
        Sample(hashlib.md5(str(number).encode()).hexdigest(), f"{number}.png", split, {"kind": "ab"[number % 2]})
        for number, split in enumerate(("train", "train", "val", "val", "test", "test"))
    )
    return DataVersion(digest, "r" * 40, samples, Path("/nowhere"), ())


def test_weights_in_a_bucket_are_brought_once_and_named_by_their_content(bucket: type[object_store.Bucket], file: Path) -> None:
    bucket.objects["first/own weights.pth"] = file.read_bytes()
    seen = list[Weights]()
    threads = [threading.Thread(target=lambda: seen.append(found(ADDRESS))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (weights,) = set(seen)
    assert weights == Weights(check_weights(BACKBONE, file), weights.path, ADDRESS)
    assert weights.path is not None
    assert weights.path.read_bytes() == file.read_bytes()
    assert bucket.fetched() == ["first/own weights.pth"]
    weights.path.write_bytes(file.read_bytes()[:-1])
    assert found(ADDRESS) == weights, "a damaged copy is made again"
    assert weights.path.read_bytes() == file.read_bytes()
    # Equal works have equal keys, wherever the weights came from.
    here, there = (make_work_plan(asking(named), version()) for named in (str(file), ADDRESS))
    assert [work.key for work in here.works] == [work.key for work in there.works]
    state = torch.load(file, weights_only=True)
    state["features.0.bias"] += 1
    torch.save(state, file.with_name("other.pth"))
    bucket.objects["first/own weights.pth"] = file.with_name("other.pth").read_bytes()
    assert found(ADDRESS).digest == check_weights(BACKBONE, file.with_name("other.pth")) != weights.digest


def test_weights_that_cannot_be_had_or_do_not_fit_are_refused_with_their_address(
    bucket: type[object_store.Bucket], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AskedWrongly, match=r"there is no object 's3://pets/first/own weights.pth', or no such bucket; write"):
        found(ADDRESS)
    bucket.objects["first/own weights.pth"] = b"no weights"
    with pytest.raises(WeightsError, match=r"weights 's3://pets/first/own weights.pth': .* is not a PyTorch file of tensors"):
        found(ADDRESS)
    bucket.objects["first/own weights.pth"] = file.read_bytes()
    with pytest.raises(WeightsError, match=r"weights 's3://.* is not of shufflenet_v2_x1_0; .* use backbones: \[squeezenet1_1\]"):
        find_weights(asking(ADDRESS, backbones="shufflenet_v2_x1_0"), "shufflenet_v2_x1_0")
    bucket.failure = (403, "InvalidAccessKeyId")
    with pytest.raises(AskedWrongly, match="access is refused: set AWS_PROFILE"):
        found(ADDRESS)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="does not answer"):
        found(ADDRESS)


class Full(Folder):
    """A place on the way from which the disk of this machine gets full."""

    def copy(self, name: str, goal: Path) -> bool:
        goal.write_bytes(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_without_room_for_weights_is_told_in_words_and_nothing_half_stays(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match=r"no room for a copy of weights at .*No space left.* XDG_CACHE_HOME"):
        keep_file(Full(tmp_path), "a.pth", "a")
    assert list((tmp_path / "cache" / "headstart" / "weights").iterdir()) == []


def test_what_a_kill_left_of_a_copy_is_removed_by_the_next_one(bucket: type[object_store.Bucket], file: Path) -> None:
    bucket.objects["first/own weights.pth"] = file.read_bytes()
    weights = found(ADDRESS)
    assert weights.path is not None
    left = weights.path.with_name(".arriving.new")
    left.write_bytes(b"half")
    weights.path.unlink()
    found(ADDRESS)
    assert not left.exists()


def test_brought_weights_travel_through_a_folder_that_is_the_storage(
    bucket: type[object_store.Bucket], file: Path, tmp_path: Path
) -> None:
    bucket.objects["first/own weights.pth"] = file.read_bytes()
    weights = found(ADDRESS)
    works = (Work("w1", VARIANT, weights), Work("w2", VARIANT, Weights(weights.digest, file)))
    asked = job.Job("train", "k", "m", tmp_path / "storage", version(), CLASSES, Workers(), works=works[:1])
    stored = read_job(job.write_job(asked)).works[0].weights
    assert stored.path == tmp_path / "storage" / "weights" / f"{weights.digest}.pth"
    assert stored.path.read_bytes() == file.read_bytes()
    own = replace(asked, storage=tmp_path / "other", works=works[1:])
    assert read_job(job.write_job(own)).works[0].weights.path == file, "a plan's own file is read where it lies"


def test_a_backbone_in_stages_has_the_names_of_torchvision() -> None:
    for name in ("squeezenet1_1", "mobilenet_v3_small", "vit_b_16", "densenet121"):
        named = state_of(name, skeleton_stages(name))
        wanted = BACKBONES[name].build().state_dict() if name == "squeezenet1_1" else named
        assert named.keys() == {key for key in wanted if not key.startswith(BACKBONES[name].classifier)}


def save(folder: Path, variant: Variant, **given: Any) -> Path:
    """A bundle of a model of the variant that was never trained."""
    built = build_model(variant, CLASSES, None, **given)
    preprocess = preprocess_for(BACKBONE, 48)
    return bundles.save(folder, model=built, variant=variant, classes=CLASSES, preprocess=preprocess, facts={})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, ModelVersion, Path]:
    """A storage in whose registry `pets` has a champion, and its bundle."""
    folder = tmp_path_factory.mktemp("champion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_STORAGE_ROOT", str(folder / "storage"))
        settings = read_settings(folder / "workspace")
    source = folder / "registered"
    bundle = save(source / BUNDLE_FOLDER, VARIANT)
    registry = Registry(settings.tracking, folder / "storage" / "ledger")
    registry._client.create_registered_model("pets")
    made = registry._client.create_model_version("pets", str(source), tags={"headstart.work_key": "w1"})
    return settings, registry.promote("pets", str(made.version), YES), bundle


def test_the_champions_backbone_is_what_a_training_starts_from(
    model: tuple[Settings, ModelVersion, Path], tmp_path: Path
) -> None:
    settings, champion, bundle = model
    plan = asking("champion")
    weights = find_weights(plan, BACKBONE, find_champion(settings, plan))
    assert weights.origin == f"version {champion.version} of pets"
    assert weights.path is not None
    own = {key: value for key, value in load_file(bundle / "weights.safetensors").items() if key.startswith("backbone.")}
    built = {f"backbone.{key}": value for key, value in build_stages(BACKBONE, weights.path).state_dict().items()}
    assert own.keys() == built.keys()
    assert all(torch.equal(own[key], built[key]) for key in own)
    # The same backbone under another head is the same start.
    other = VARIANT.model_copy(update={"heads": (Head(target="kind", design="mlp"),)})
    save(tmp_path / "twin", other, backbone=build_stages(BACKBONE, weights.path))
    save_backbone(tmp_path / "twin", tmp_path / "twin.pth")
    assert (tmp_path / "twin.pth").read_bytes() == weights.path.read_bytes()
    each = asking({BACKBONE: "champion", "resnet18": "none"}, backbones=[BACKBONE, "resnet18"], freeze="none")
    assert find_weights(each, BACKBONE, find_champion(settings, each)) == weights
    assert find_weights(each, "resnet18") == Weights("none")


def test_a_champion_that_is_not_there_or_of_another_backbone_is_refused_with_what_to_write(
    model: tuple[Settings, ModelVersion, Path],
) -> None:
    settings, _, _ = model
    with pytest.raises(AskedWrongly, match=r"'cats' has no champion yet; write weights: imagenet \(or none, or a file\) until"):
        find_champion(settings, asking("champion", name="cats"))
    other = asking("champion", backbones="shufflenet_v2_x1_0")
    with pytest.raises(AskedWrongly, match=r"version 1 of pets is of squeezenet1_1, .*\{squeezenet1_1: champion, "):
        find_weights(other, "shufflenet_v2_x1_0", find_champion(settings, other))


class Session:
    """What planning takes of a session."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self.settings, self.plan, self.said = settings, plan, list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_retraining_that_is_begun_again_starts_from_the_champion_of_its_begin_and_new_data_from_that_of_now(
    model: tuple[Settings, ModelVersion, Path], tmp_path: Path
) -> None:
    settings, champion, _ = model
    session: Any = Session(settings, asking("champion"))
    before = make_work_plan(session.plan, version(), settings)
    assert plan_work(session, version()).key == before.key
    assert "squeezenet1_1 starts from version 1 of pets" in session.said
    other = VARIANT.model_copy(update={"fit": Fit(image_size_px=48, seed=1)})
    digest = bundles.digest(save(Path(settings.root) / "work" / "w2" / "bundle", other))
    registry = Registry(settings.tracking, tmp_path / "ledger")
    tags = {"headstart.work_key": "w2", "headstart.bundle_digest": digest}
    made = registry._client.create_model_version("pets", str(tmp_path / "nothing"), tags=tags)
    registry.promote("pets", str(made.version), YES)
    try:
        assert plan_work(session, version()).key == make_work_plan(session.plan, version(), settings).key == before.key
        assert plan_work(session, version("e" * 32)).works[0].weights.origin == "version 2 of pets"
        assert plan_work(session, version("e" * 32)).works[0].weights.digest != before.works[0].weights.digest
    finally:
        registry._client.set_registered_model_alias("pets", "champion", champion.version)


def test_a_file_that_was_checked_is_read_again_as_soon_as_it_is_another(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copy2(file, tmp_path / "own.pth"))
    checks: list[Path] = []

    def check(name: str, path: Path) -> str:
        checks.append(path)
        return check_weights(name, path)

    monkeypatch.setattr("heads.backbones.check_weights", check)
    first = found(str(own))
    assert found(str(own)) == first
    assert checks == [own]
    # As long as the first, and as old by its date: a copy that keeps the times.
    state = torch.load(file)
    # In an archive its entries bear the name of the file.
    other = tmp_path / file.name
    for tensor in state.values():
        tensor += 1
    torch.save(state, other)
    facts = own.stat()
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    shutil.copy2(other, own)
    assert (own.stat().st_size, own.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    second = found(str(own))
    assert second.digest == weights_digest(own) != first.digest
    own.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"own\.pth"):
        found(str(own))
    own.unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        found(str(own))


def test_a_machine_without_a_place_for_notes_checks_each_time(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    assert found(str(file)) == found(str(file))


def test_a_copy_is_told_from_a_file_of_a_person(tmp_path: Path) -> None:
    assert local_copies.is_copy(tmp_path / "cache" / "headstart" / "weights" / "a.pth")
    assert not local_copies.is_copy(tmp_path / "a.pth")
