"""A bundle is written whole, refused when a byte differs, and predicts the same loaded, exported and anywhere."""

import hashlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch.export import Dim

from heads import bundle
from heads.atomic_files import STALE_SECONDS, appearing
from heads.bundle import Bundle, Labels, MaskPrediction, Prediction
from heads.bundle.program import export_program
from heads.bundle.writing import TYPES, write_weights
from heads.data.decoding import decode_mask
from heads.data.image_dataset import ImageDataset
from heads.data.image_transforms import decode, prepare, preprocess_for
from heads.data.masks import Masks
from heads.errors import BundleError, HeadsError, ImageError
from heads.model.model import Model, build_model
from heads.spec import Fit, Head, Variant
from tests.heads.evaluating import predict_table
from tests.rounding import ROUNDING

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "pets3" / "images"
CLASSES = {"kind": ("cat", "dog", "öx"), "a.b": ("no", "yes")}
FACTS = {"data_version": "abc.dir", "weights_digest": "none", "metrics": {"val/kind/accuracy": 0.75}}


def make_model(variant: Variant) -> Model:
    """A model whose heads tell pictures apart: as built they are near zero, and every probability near even."""
    model = build_model(variant, CLASSES, None)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    return model


def variant_of(
    backbone: str = "mobilenet_v3_small", image_size_px: int = 96, designs: tuple[str, str] = ("linear", "mlp")
) -> Variant:
    heads = tuple(Head(target=target, design=design) for target, design in zip(("kind", "a.b"), designs, strict=True))
    return Variant(backbone=backbone, heads=heads, fit=Fit(image_size_px=image_size_px))


def write(dest: Path, variant: Variant | None = None) -> Path:
    variant = variant or variant_of()
    preprocess = preprocess_for(variant.backbone, variant.fit.image_size_px)
    return bundle.save(dest, model=make_model(variant), variant=variant, classes=CLASSES, preprocess=preprocess, facts=FACTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    for file in folder.iterdir():
        (tmp_path / "bundle" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Bundle:
    return bundle.load(folder)


def picture(width: int, height: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_a_bundle_that_cannot_be_written_leaves_the_one_before_and_no_part_of_itself(copy: Path) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, largest[1]))
    try:
        with pytest.raises((OSError, SafetensorError), match="File too large"):
            write(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert list(copy.parent.iterdir()) == [copy]


def test_the_next_writer_removes_what_killed_ones_left_and_leaves_living_ones_alone(tmp_path: Path) -> None:
    program = """
import pathlib, sys
from heads.atomic_files import appearing
with appearing(pathlib.Path(sys.argv[1])) as made:
    made.write_text(sys.argv[1])
    print(flush=True)
    sys.stdin.read()
"""
    names = ("killed", "living")
    writers = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path / name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in names
    ]
    for writer in writers:
        assert writer.stdout
        writer.stdout.readline()
    killed, living = writers
    killed.kill()
    killed.communicate()
    # Of an earlier version, and of another machine: the one is old, the other may be alive.
    for name, age_seconds in ((".bundle.1.partial", 2 * STALE_SECONDS), (".elsewhere-1.partial", 60.0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, times=(time.time() - age_seconds,) * 2)
    with appearing(tmp_path / "new") as made:
        assert len(list(tmp_path.iterdir())) == 3, "the living one, that of another machine, and this one"
        made.write_text("new")
    living.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {"living", "new", ".elsewhere-1.partial"}
    assert [living.returncode, (tmp_path / "living").read_text()] == [0, str(tmp_path / "living")]


def test_what_is_loaded_is_what_was_saved(folder: Path, loaded: Bundle) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted((*bundle.FILES, "SHA256SUMS"))
    assert [file.name for file in folder.parent.iterdir()] == ["bundle"]
    assert loaded.variant == variant_of()
    assert dict(loaded.classes) == CLASSES
    assert loaded.preprocess == preprocess_for("mobilenet_v3_small", 96)
    assert loaded.facts == FACTS
    original = make_model(variant_of()).state_dict()
    assert all(torch.equal(original[name], tensor) for name, tensor in loaded.model.state_dict().items())
    card = (folder / "card.md").read_text()
    assert "abc.dir" in card
    assert "| val/kind/accuracy | 0.7500 |" in card
    assert "öx" in card


def test_equal_models_make_equal_bytes_and_one_digest_names_them(folder: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again")
    assert bundle.digest(again) == bundle.digest(folder) == hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=again, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_weights_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    model = make_model(variant_of()).to(memory_format=torch.channels_last)
    for number, kind in enumerate(TYPES):
        model.backbone.register_buffer(f"buffer{number}", torch.arange(5).to(kind))
        model.heads.register_buffer(f"Ünit{number}", torch.tensor(number).to(kind))
    sha256 = write_weights(tmp_path / "weights", model)
    written = safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    assert (tmp_path / "weights").read_bytes() == written
    assert sha256 == hashlib.sha256(written).hexdigest()


def test_models_that_share_a_backbone_have_the_bundles_that_they_would_have_alone(tmp_path: Path) -> None:
    variants = [variant_of(designs=designs) for designs in (("linear", "linear"), ("mlp", "linear"))]
    first, *others = [make_model(variant) for variant in (*variants, *variants)]
    shared, preprocess = bundle.SharedBackbone(first.backbone), preprocess_for("mobilenet_v3_small", 96)
    for number, (model, variant) in enumerate(zip((first, *others), (*variants, *variants), strict=True)):
        model.backbone = first.backbone
        model.heads.head0[1].weight.data.add_(number)
        told = {"model": model, "variant": variant, "classes": CLASSES, "preprocess": preprocess, "facts": FACTS}
        beside, alone = bundle.save(tmp_path / "beside", **told, shared=shared), bundle.save(tmp_path / "alone", **told)
        bundle.verify(beside)
        assert bundle.digest(beside) == bundle.digest(alone)
    assert len(shared.digests) == len(variants)


def test_saving_again_takes_the_place_of_what_was_there(copy: Path) -> None:
    (copy / "rubbish").write_text("x")
    write(copy)
    bundle.verify(copy)
    assert [file.name for file in copy.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", bundle.FILES)
def test_a_changed_byte_is_refused_by_the_files_name(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)
    with pytest.raises(BundleError, match=name):
        bundle.verify(copy)


@pytest.mark.parametrize("name", [*bundle.FILES, "SHA256SUMS"])
def test_a_missing_file_is_refused_by_its_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)


def test_an_extra_file_an_odd_list_and_no_bundle_at_all_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "extra.py").write_text("print()")
    with pytest.raises(BundleError, match=r"extra\.py"):
        bundle.load(copy)
    (copy / "extra.py").unlink()
    (copy / "SHA256SUMS").write_text("0" * 64 + "  ../elsewhere\n")
    with pytest.raises(BundleError, match="elsewhere"):
        bundle.load(copy)
    (copy / "SHA256SUMS").write_bytes(b"\xff\x00")
    with pytest.raises(BundleError):
        bundle.load(copy)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(BundleError, match="SHA256SUMS cannot be read"):
            bundle.load(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("variant.json", {"format": 99}, "format 99"),
        ("variant.json", {"format": 1, "variant": {"backbone": "vgg"}, "facts": {}}, "vgg"),
        (
            "classes.json",
            {"kind": ["cat"], "a.b": ["no", "yes"]},
            r"float32 \(3, 576\), and its variant's is torch.float32 \(1, 576\)",
        ),
        ("classes.json", ["cat"], "no bundle that Headstart wrote"),
        ("preprocess.json", {"image_size_px": 96}, "mean"),
        ("weights.safetensors", "no weights", "no bundle that Headstart wrote"),
    ],
)
def test_contents_that_fit_their_digests_but_no_bundle_are_refused(copy: Path, name: str, content: object, words: str) -> None:
    data = json.dumps(content).encode()
    old = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    (copy / name).write_bytes(data)
    sums = (copy / "SHA256SUMS").read_text()
    (copy / "SHA256SUMS").write_text(sums.replace(old, hashlib.sha256(data).hexdigest()))
    with pytest.raises(BundleError, match=words):
        bundle.load(copy)


def test_paths_bytes_pillow_images_and_arrays_predict_alike(loaded: Bundle, tmp_path: Path) -> None:
    image = picture(120, 100, seed=1)
    file = tmp_path / "0f3a"
    image.save(file, "PNG")
    answers = loaded.predict([file, str(file), file.read_bytes(), image, np.asarray(image)], batch_size=2)
    # Each by its own place in a batch, the last in a batch of one.
    for answer in answers:
        for target, one in answer.items():
            assert one.label == answers[0][target].label
            assert one.probabilities == pytest.approx(answers[0][target].probabilities, abs=ROUNDING)
    prediction = answers[0]["kind"]
    assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    assert prediction.probability == prediction.probabilities[prediction.label]
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert list(answers[0]) == ["kind", "a.b"]
    assert list(prediction.probabilities) == list(CLASSES["kind"])
    assert repr(Prediction("cat", 0.5, {"cat": 0.5})) == "Prediction(label='cat', probability=0.5)"
    assert len(repr(loaded)) < 1000
    assert loaded.predict([]) == []
    assert len(loaded.predict(np.stack([np.asarray(image)] * 3))) == 3


def test_predictions_are_what_training_measured(loaded: Bundle, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.jpg" for seed in range(5)]
    for seed, file in enumerate(files):
        picture(150 - seed, 110, seed).save(file)
    dataset = ImageDataset(files, {target: [0] * 5 for target in CLASSES}, loaded.preprocess)
    table = predict_table(loaded.model, dataset, device="cpu", batch_size=5)
    for (_, rows), answer in zip(table, loaded.predict(files, batch_size=5), strict=True):
        for target in CLASSES:
            assert list(answer[target].probabilities.values()) == rows[target].tolist()


def test_one_bad_image_is_named(loaded: Bundle, tmp_path: Path) -> None:
    good, bad = picture(20, 20, 0), tmp_path / "bad.jpg"
    bad.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        loaded.predict([good, bad])
    with pytest.raises(ImageError, match=r"images\[1\].*float64 \(4, 4, 3\)"):
        loaded.predict([good, np.zeros((4, 4, 3))])
    with pytest.raises(ImageError, match=r"images\[1\]"):
        loaded.predict([good, b"x"])
    with pytest.raises(ImageError, match=r"images\[0\] is a int"):
        loaded.predict([3])  # type: ignore[list-item]
    for single in ("cat.jpg", good, np.asarray(good)):
        with pytest.raises(HeadsError, match="takes a list"):
            loaded.predict(single)  # type: ignore[arg-type]


def exported(made: Bundle, size: tuple[int, int]) -> torch.nn.Module:
    # As MLflow exports an example batch whose signature has -1 for batch, height and width.
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO},)
    example = torch.zeros((2, *size, 3), dtype=torch.uint8)
    program = torch.export.export(export_program(made), (example,), dynamic_shapes=shapes)
    # A device written into the program would keep it from running on another.
    assert not [node for node in program.graph.nodes if "device" in node.kwargs]
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


@pytest.fixture(scope="module", params=[(32, 32), (40, 100)], ids=str)
def program(loaded: Bundle, request: pytest.FixtureRequest) -> torch.nn.Module:
    return exported(loaded, request.param)


def probabilities(answers: list[dict[str, Prediction]]) -> np.ndarray:
    return np.array([[x for prediction in answer.values() for x in prediction.probabilities.values()] for answer in answers])


@pytest.mark.parametrize(
    ("count", "size"), [(1, (120, 90)), (2, (90, 120)), (5, (32, 32)), (1, (400, 30)), (3, (301, 299)), (1, (1, 1))]
)
def test_the_exported_program_gives_what_predict_gives_at_any_size(
    loaded: Bundle, program: torch.nn.Module, count: int, size: tuple[int, int]
) -> None:
    images = np.stack([np.asarray(picture(*size, seed)) for seed in range(count)])
    given = program(torch.from_numpy(images)).detach().numpy()
    assert given.shape == (count, 5)
    assert np.abs(given - probabilities(loaded.predict(images))).max() < 1e-4
    assert np.ptp(given) > 0.05


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs of pets3 are not beside this checkout")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_exported_program_reads_photographs_as_predict_does(loaded: Bundle, program: torch.nn.Module, count: int) -> None:
    photos = [np.asarray(decode(file)) for file in sorted(PHOTOS.iterdir())[:count]]
    height, width = min(x.shape[0] for x in photos), min(x.shape[1] for x in photos)
    images = np.stack([x[:height, :width] for x in photos])
    given = program(torch.from_numpy(images)).detach().numpy()
    assert np.abs(given - probabilities(loaded.predict(images))).max() < 1e-4


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("resnet18", (64, 64)), ("squeezenet1_1", (8, 8)), ("shufflenet_v2_x1_0", (50, 90)), ("convnext_tiny", (300, 20))],
)
def test_every_family_of_backbones_exports_from_an_example_of_any_size(
    backbone: str, size: tuple[int, int], tmp_path: Path
) -> None:
    made = bundle.load(write(tmp_path / "bundle", variant_of(backbone, 64, ("attention", "cosine"))))
    program = exported(made, size)
    for width, height in ((70, 50), (64, 64), (8, 8), (300, 20)):
        images = np.stack([np.asarray(picture(width, height, seed)) for seed in range(3)])
        given = program(torch.from_numpy(images)).detach().numpy()
        assert np.abs(given - probabilities(made.predict(images))).max() < 1e-4


def test_a_consumer_needs_nothing_of_the_pipeline_and_no_network(folder: Path, tmp_path: Path) -> None:
    picture(40, 40, 0).save(tmp_path / "a.png")
    consume = f"""
import socket, sys
def refuse(*arguments): raise AssertionError("the network was opened")
socket.socket.connect = refuse
import heads.bundle
print(heads.bundle.load({str(folder)!r}).predict([{str(tmp_path / "a.png")!r}]))
foreign = {{"ray", "mlflow", "prefect", "dvc", "boto3", "flows", "scipy", "sklearn", "pandas"}} & set(sys.modules)
assert not foreign, foreign
"""
    done = subprocess.run(
        [sys.executable, "-c", consume], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[{'kind': Prediction(label=")


ALL_CLASSES = {"kind": ("cat", "dog", "öx"), "tags": ("indoor", "night", "wet"), "mask": ("0", "7", "200")}
TASKED = {
    "kind": Head(target="kind", design="mlp"),
    "tags": Head(target="tags", task="multilabel", design="linear"),
    "mask": Head(target="mask", task="segmentation", design="lraspp", ignore=(255,)),
}
THRESHOLDS = {"tags": (0.25, 0.5, 0.75)}


def write_tasks(
    dest: Path,
    *targets: str,
    classes: dict[str, tuple[str, ...]] | None = None,
    image_size_px: int = 64,
    temperatures: dict[str, float] | None = None,
) -> Path:
    """A bundle of these targets whose heads tell pictures, and places in them, apart."""
    heads = tuple(TASKED[target] for target in targets)
    variant = Variant(backbone="squeezenet1_1", heads=heads, fit=Fit(image_size_px=image_size_px))
    known = {target: (classes or ALL_CLASSES)[target] for target in targets}
    model = build_model(variant, known, None)
    preprocess = preprocess_for("squeezenet1_1", image_size_px, whole=variant.sees_whole)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
        if "mask" in targets:
            # So that each class is the likeliest somewhere.
            logits = model.eval()(torch.stack([prepare(picture(64, 64, seed), preprocess) for seed in range(8)]))["mask"]
            biases = [p for p in model.heads[model.head_keys["mask"]].parameters() if p.shape == (len(known["mask"]),)]
            biases[-1] -= logits.mean(dim=(0, 2, 3))
    found = {target: THRESHOLDS[target] for target in targets if target in THRESHOLDS}
    tuned = {"thresholds": found, "temperatures": temperatures}
    return bundle.save(dest, model=model, variant=variant, classes=known, preprocess=preprocess, facts=FACTS, **tuned)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("bundles") / "tasks", "kind", "tags", "mask")


def test_tasks_and_thresholds_are_saved_loaded_and_verified(tasks: Path, tmp_path: Path) -> None:
    made = bundle.load(tasks)
    bundle.verify(tasks)
    assert {head.target: head.task for head in made.variant.heads} == {
        "kind": "classification",
        "tags": "multilabel",
        "mask": "segmentation",
    }
    assert made.variant.heads[2].ignore == (255,)
    assert dict(made.thresholds) == THRESHOLDS
    assert dict(made.classes) == ALL_CLASSES
    assert made.preprocess.whole
    assert bundle.digest(write_tasks(tmp_path / "again", "kind", "tags", "mask")) == bundle.digest(tasks)


def test_labels_are_told_from_their_own_thresholds_on(tasks: Path, tmp_path: Path) -> None:
    images = [picture(60 + n, 50, n) for n in range(8)]
    answers = [one["tags"] for one in bundle.load(tasks).predict(images)]
    even = bundle.save(
        tmp_path / "even",
        model=(loaded := bundle.load(tasks)).model,
        variant=loaded.variant,
        classes=loaded.classes,
        preprocess=loaded.preprocess,
        facts=FACTS,
    )
    untuned = [one["tags"] for one in bundle.load(even).predict(images)]
    for answer, other in zip(answers, untuned, strict=True):
        assert isinstance(answer, Labels)
        assert dict(answer.probabilities) == dict(other.probabilities)
        least = dict(zip(ALL_CLASSES["tags"], THRESHOLDS["tags"], strict=True))
        assert answer.labels == tuple(name for name, x in answer.probabilities.items() if x >= least[name])
        assert other.labels == tuple(name for name, x in other.probabilities.items() if x >= 0.5)
    assert any(answer.labels != other.labels for answer, other in zip(answers, untuned, strict=True))


@pytest.mark.parametrize("size", [(61, 47), (64, 64), (1, 1), (300, 31), (7, 200)])
def test_a_mask_has_its_images_own_size_and_values(tasks: Path, size: tuple[int, int]) -> None:
    answer = bundle.load(tasks).predict([picture(*size, seed=1)])[0]["mask"]
    assert isinstance(answer, MaskPrediction)
    assert answer.mask.shape == (size[1], size[0])
    assert answer.mask.dtype == np.uint8
    values, counts = np.unique(answer.mask, return_counts=True)
    assert set(values.tolist()) <= {0, 7, 200}
    shares = dict.fromkeys(ALL_CLASSES["mask"], 0.0) | {
        str(value): count / answer.mask.size for value, count in zip(values, counts, strict=True)
    }
    assert dict(answer.shares) == pytest.approx(shares)


def test_a_mask_stands_upright_with_its_image(tasks: Path, tmp_path: Path) -> None:
    upright = picture(90, 50, seed=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned, plain = (one["mask"].mask for one in bundle.load(tasks).predict([tmp_path / "turned.png", upright]))
    assert turned.shape == (50, 90)
    assert len(np.unique(plain)) > 1
    assert np.array_equal(turned, plain)


@pytest.mark.parametrize("names", [("0", "7", "200"), ("3", "256", "40000")])
def test_a_masks_picture_holds_its_values_to_the_pixel(tmp_path: Path, names: tuple[str, ...]) -> None:
    made = bundle.load(write_tasks(tmp_path / "bundle", "mask", classes={"mask": names}))
    answer = made.predict([picture(83, 61, seed=2)])[0]["mask"]
    answer.picture().save(tmp_path / "mask.png")
    read = decode_mask(tmp_path / "mask.png")
    assert np.array_equal(read, answer.mask)
    assert len(np.unique(read)) > 1
    assert set(np.unique(read).tolist()) <= set(map(int, names))
    if max(map(int, names)) < 256:
        with Image.open(tmp_path / "mask.png") as shown:
            colours = shown.convert("RGB").getcolors()
        assert len(colours) == len(np.unique(read)), "each value has a colour of its own"


def test_masks_and_labels_are_what_training_measured(tasks: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, file in enumerate(files):
        picture(64, 64, seed).save(file)
    made = bundle.load(tasks)
    dataset = ImageDataset(
        files, {"kind": [0] * 5, "tags": torch.zeros(5, 3)}, made.preprocess, masks={"mask": Masks([None] * 5, {})}
    )
    table = predict_table(made.model, dataset, device="cpu", batch_size=5)
    values = np.array([0, 7, 200])
    for (_, rows), answer in zip(table, made.predict(files, batch_size=5), strict=True):
        assert list(answer["tags"].probabilities.values()) == rows["tags"].tolist()
        # At the model's own size nothing is scaled between the two.
        assert np.array_equal(answer["mask"].mask, values[rows["mask"].argmax(dim=0).numpy()])


@pytest.fixture(scope="module", params=[("mask",), ("kind", "tags", "mask")], ids="+".join)
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, torch.nn.Module]:
    made = bundle.load(write_tasks(tmp_path_factory.mktemp("bundles") / "dense", *request.param))
    return made, exported(made, (32, 32))


@pytest.mark.parametrize(("count", "size"), [(1, (120, 90)), (2, (61, 47)), (3, (64, 64)), (1, (300, 30)), (2, (8, 9))])
def test_the_exported_program_gives_masks_as_predict_does_at_any_size(
    dense: tuple[Bundle, torch.nn.Module], count: int, size: tuple[int, int]
) -> None:
    made, program = dense
    images = np.stack([np.asarray(picture(*size, seed)) for seed in range(count)])
    given = program(torch.from_numpy(images)).detach().numpy()
    assert given.shape == (count, sum(map(len, made.classes.values())), size[1], size[0])
    first = 0
    for target, names in made.classes.items():
        part, first = given[:, first : first + len(names)], first + len(names)
        for row, answers in zip(part, made.predict(images), strict=True):
            answer = answers[target]
            if isinstance(answer, MaskPrediction):
                assert row.sum(axis=0) == pytest.approx(np.ones(size[::-1]), abs=1e-4)
                told = np.array([int(name) for name in names])[row.argmax(axis=0)]
                assert (told == answer.mask).mean() > 0.999, "but for pixels between two classes"
                continue
            wanted = np.array(list(answer.probabilities.values()))
            assert np.abs(row - wanted[:, None, None]).max() < 1e-4, "the same at every pixel"


def test_label_sets_export_as_their_probabilities(tmp_path: Path) -> None:
    made = bundle.load(write_tasks(tmp_path / "bundle", "tags", "kind"))
    images = np.stack([np.asarray(picture(70, 50, seed)) for seed in range(3)])
    given = exported(made, (32, 32))(torch.from_numpy(images)).detach().numpy()
    assert given.shape == (3, 6)
    assert np.abs(given - probabilities(made.predict(images))).max() < 1e-4


def test_a_temperature_divides_the_logits_in_the_bundle_and_in_its_program(tasks: Path, tmp_path: Path) -> None:
    temperatures = {"kind": 2.5, "tags": 0.5}
    made = bundle.load(write_tasks(tmp_path / "bundle", "kind", "tags", temperatures=temperatures))
    plain = bundle.load(write_tasks(tmp_path / "plain", "kind", "tags"))
    assert dict(made.temperatures) == temperatures
    assert not plain.temperatures
    images = np.stack([np.asarray(picture(70, 50, seed)) for seed in range(3)])
    told, raw = made.predict(images), plain.predict(images)
    for answer, other in zip(told, raw, strict=True):
        odds = np.log(list(other["kind"].probabilities.values())) / 2.5
        assert list(answer["kind"].probabilities.values()) == pytest.approx(np.exp(odds) / np.exp(odds).sum(), abs=1e-6)
        assert answer["kind"].label == other["kind"].label
        chances = np.array(list(other["tags"].probabilities.values()))
        expected = 1 / (1 + (1 / chances - 1) ** 2)
        assert list(answer["tags"].probabilities.values()) == pytest.approx(expected, abs=1e-6)
    given = exported(made, (32, 32))(torch.from_numpy(images)).detach().numpy()
    assert np.abs(given - probabilities(told)).max() < 1e-4
    assert np.abs(given - probabilities(raw)).max() > 0.01
    card = (tmp_path / "bundle" / "card.md").read_text()
    assert "cat, dog, öx; probabilities of temperature 2.5" in card
    assert "Measures of validation are those of temperature 1" in card
    assert "temperature" not in (tmp_path / "plain" / "card.md").read_text()


@pytest.mark.parametrize(
    ("target", "value"), [("kind", 0), ("kind", "2"), ("kind", math.inf), ("kind", math.nan), ("other", 2.0)]
)
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, target: str, value: Any) -> None:
    with pytest.raises(BundleError, match=f"the temperature of '{target}' is {value!r}"):
        bundle.load(write_tasks(tmp_path / "bundle", "kind", temperatures={target: value}))


def test_the_card_says_what_each_head_tells_and_how_to_read_it(tasks: Path, tmp_path: Path) -> None:
    card = (tasks / "card.md").read_text()
    for words in (
        "3 classes: cat, dog, öx",
        "3 labels, each told from the probability in brackets on: indoor (0.250), night (0.500), wet (0.750)",
        "masks of 3 values: 0, 7, 200; pixels of 255 counted for nothing",
        "`answers['kind']` is a `Prediction`",
        "`answers['tags']` is `Labels`",
        "`answers['mask']` is a `MaskPrediction`",
        "the whole image brought to 64 x 64 px",
    ):
        assert words in card
    labels_alone = (write_tasks(tmp_path / "bundle", "tags") / "card.md").read_text()
    assert "classifier" not in labels_alone
    assert "Prediction" not in labels_alone
    assert "none included" in labels_alone


def test_a_threshold_that_is_missing_or_too_many_is_refused(tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    for file in tasks.iterdir():
        (tmp_path / "bundle" / file.name).write_bytes(file.read_bytes())
    description = json.loads((tasks / "variant.json").read_text())
    del description["thresholds"]["tags"]["wet"]
    data, sums = json.dumps(description).encode(), (tasks / "SHA256SUMS").read_text()
    old = hashlib.sha256((tasks / "variant.json").read_bytes()).hexdigest()
    (tmp_path / "bundle" / "variant.json").write_bytes(data)
    (tmp_path / "bundle" / "SHA256SUMS").write_text(sums.replace(old, hashlib.sha256(data).hexdigest()))
    with pytest.raises(BundleError, match="wet"):
        bundle.load(tmp_path / "bundle")
