"""Wrong requests, as the command answers them: status 2, one message that says what to do, within seconds, nothing changed."""

from __future__ import annotations

import errno
import json
import signal
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from flows import dataset
from flows.settings import read_settings
from flows.stages.data import ingest
from flows.stages.preview import plan_preview
from heads.bundle import save
from heads.data.image_transforms import preprocess_for
from heads.model.model import build_model
from heads.spec import Head, Variant
from tests.cli.conftest import Answer, Ask, make_workspace

DEAD = "http://127.0.0.1:9"
PLAN = "name: tiny\nbackbones: [resnet18]\nweights: none\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two classes of twenty pictures."""
    return make_workspace(tmp_path_factory.mktemp("workspace") / "tiny", PLAN)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of 24 pictures with columns of classes, one of label sets, one of masks and one of pictures as masks.

    The val split has no `rare` class, the train split no `late` class z, `blank` no cell at all, and one test mask the value
    9 beside 0 and 1.
    """
    source, folder = tmp_path_factory.mktemp("masked-source"), tmp_path_factory.mktemp("masked") / "tiny"
    for kind in ("images", "masks", "drawings"):
        (source / kind).mkdir()
    lines = ["file,kind,rare,late,blank,tags,mask,drawn,split"]
    for number in range(24):
        name, split, letter = f"{number}.png", ("train", "train", "val", "test")[number % 4], "ab"[number // 4 % 2]
        Image.new("RGB", (20, 20), (number, 200, 7)).save(source / "images" / name)
        mask = Image.new("L", (20, 20), 1)
        mask.paste(9 if number == 23 else 0, (0, 0, 10, 20))
        mask.save(source / "masks" / name)
        Image.frombytes("I;16", (20, 20), b"".join(value.to_bytes(2, "little") for value in range(400))).save(
            source / "drawings" / name
        )
        rare = "" if split == "val" else letter
        late = "z" if split == "test" else letter
        lines.append(f"{name},{letter},{rare},{late},,{letter}|x,masks/{name},drawings/{name},{split}")
    (source / "labels.csv").write_text("\n".join(lines))
    dataset.init_workspace(folder)
    ingest(read_settings(folder), str(source))
    return folder


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a server that answers everything with a page of its own."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.startswith("/api/") else 404)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refused(answer: Answer, *words: str) -> None:
    """The answer is a refusal in one message that has these words."""
    assert answer.status == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("headstart: ")
    assert "Traceback" not in answer.err
    assert [word for word in words if word not in answer.err] == [], answer.err


def left_behind(folder: Path) -> set[str]:
    """Runs, locks, works, versions and servers that a refusal must not leave."""
    made = {path.relative_to(folder).as_posix() for path in (folder / ".headstart").rglob("*") if path.is_file()}
    return {name for name in made if not name.startswith(".headstart/remote/") and name != ".headstart/lock"}


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"HEADSTART_TRACKING_ADDRESS": DEAD}, ("MLflow does not answer", DEAD, "HEADSTART_TRACKING_ADDRESS")),
        ({"HEADSTART_TRACKING_ADDRESS": "mlruns"}, ("HEADSTART_TRACKING_ADDRESS=mlruns: not understood", "sqlite:///")),
        ({"HEADSTART_RAY_ADDRESS": DEAD}, ("Ray at", DEAD, "does not answer", "HEADSTART_RAY_ADDRESS")),
        ({"HEADSTART_RAY_ADDRESS": "ray://127.0.0.1:10001"}, ("ray://127.0.0.1:10001", "http://host:8265")),
        ({"HEADSTART_PREFECT_ADDRESS": f"{DEAD}/api"}, ("Prefect does not answer", DEAD, "HEADSTART_PREFECT_ADDRESS")),
        ({"PREFECT_API_URL": f"{DEAD}/api"}, ("Prefect does not answer", DEAD)),
        ({"HEADSTART_STORAGE_ROOT": "/dev/null/x"}, ("/dev/null/x", "can not be")),
        ({"HEADSTART_STORAGE_ROOT": "/proc/x", "HEADSTART_TRACKING_ADDRESS": "sqlite:////tmp/never-made.db"}, ("/proc/x",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_address_that_does_not_serve_is_told_before_anything_starts(
    workspace: Path, ask: Ask, env: dict[str, str], words: tuple[str, ...]
) -> None:
    refused(ask(workspace, "retrain", "plan.yaml", **env), *words)
    assert left_behind(workspace) == set()


@pytest.mark.parametrize("setting", ["HEADSTART_TRACKING_ADDRESS", "HEADSTART_RAY_ADDRESS", "HEADSTART_PREFECT_ADDRESS"])
def test_an_address_of_something_else_is_told_apart(workspace: Path, ask: Ask, stranger: str, setting: str) -> None:
    address = f"{stranger}/api" if "PREFECT" in setting else stranger
    refused(ask(workspace, "retrain", "plan.yaml", **{setting: address}), "answers, but", stranger)
    assert left_behind(workspace) == set()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("workers: {count: 1000}", ("1000", "lower workers.count", "HEADSTART_RAY_ADDRESS")),
        ("workers: {count: 1000, cpus_per_worker: 0.1}", ("1000", "lower workers.count")),
        ("workers: {gpus_per_worker: 1}", ("1 GPUs", "has 0", "workers.gpus_per_worker")),
        ("workers: {count: 2, gpus_per_worker: 0.5}", ("NCCL refuses two", "{count: 1, gpus_per_worker: 0.5}", "a GPU each")),
        ("workers: {count: 4, gpus_per_worker: 0.1}", ("4 workers of 0.1 GPUs", "{count: 4, gpus_per_worker: 1}")),
        ("workers: {gpus_per_worker: 1.5}", ("1.5 is neither whole nor below 1", "write 1")),
        ("targets: [{column: labl}]", ("'labl'", "did you mean 'label'?")),
        ("weights: nowhere/x.pth", ("nowhere/x.pth", "not there", "imagenet, none")),
        ("weights: data", ("'data'", "are unknown")),
        ("weights: ./data", ("'./data'", "a folder")),
        ("colour: red", ("unknown key 'colour'", "allowed: name")),
        ("fit: {max_tokens: 32, word_dropout: 0.1}", ("max_tokens, word_dropout is for texts", "reads images", "leave it out")),
    ],
)
def test_a_plan_that_cannot_run_is_refused(workspace: Path, ask: Ask, tmp_path: Path, lines: str, words: tuple[str, ...]) -> None:
    plan = tmp_path / "plan.yaml"
    key = lines.partition(":")[0]
    plan.write_text("\n".join([*(line for line in PLAN.splitlines() if not line.startswith(key)), lines]))
    refused(ask(workspace, "retrain", str(plan), CUDA_VISIBLE_DEVICES=""), *words)
    assert left_behind(workspace) == set()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", ("its columns are kind, rare, late, blank, tags, mask, drawn", "targets: [{column: kind}]")),
        ("targets: [kind, late]", ("'late'", "the test split holds classes that train lacks: z", "add training samples")),
        (
            "targets: [kind, blank]",
            ("'blank' needs at least two classes in the train split; found: none", "leave the target out"),
        ),
        ("targets: kind\nfreeze: upto:layer9", ("resnet18 has no stage 'layer9'", "stem, layer1, layer2, layer3, layer4")),
        ("targets: kind\nfreeze: all", ("freeze", "all", "weights", "none")),
        ("targets: kind\nfit: {image_size_px: 31}", ("image_size_px", "31", "32")),
        ("targets: mask", ("'mask'", "no training mask has: 9 (1 mask)", "allowed: 0, 1", "ignore: [9]")),
        ("targets: {column: mask, ignore: [0, 9]}", ("'mask'", "at least two classes", "found: 1 besides 0, 9")),
        ("targets: drawn", ("'drawn'", "400 different values, from 0 to 399", "pictures rather than masks", "At most 256")),
        ("targets: [kind, rare]", ("'rare' has no label in the val split", "ingest more data")),
        ("targets: {column: mask, task: classification}", ("'mask' holds masks", "allowed: segmentation")),
        ("targets: {column: tags, task: segmentation}", ("'tags' holds class labels", "allowed: classification, multilabel")),
        ("targets: {column: kind, ignore: 3}", ("ignore [3]", "'kind' is classification", "leave it out")),
        ("targets: {column: mask, ignore: 9}\nheads: mlp", ("none of mlp", "segmentation", "fcn, deeplabv3, lraspp, unet, fpn")),
        ("targets: tags\nheads: [unet]", ("none of unet", "multilabel", "linear, mlp, attention, cosine")),
        ("targets: tags\nfit: {loss: dice}", ("dice is of masks", "tags: multilabel", "allowed: cross_entropy, focal")),
        ("targets: tags\npromotion: {metric: tags/top5}", ("top5 is no measure of multilabel", "tags/average_precision")),
        ("targets: kind\npromotion: {metric: kind/top5}", ("more than five classes", "'kind' has 2", "use accuracy")),
    ],
)
def test_targets_that_the_data_does_not_serve_are_refused(
    masked: Path, ask: Ask, tmp_path: Path, lines: str, words: tuple[str, ...]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"{PLAN}{lines}\n")
    refused(ask(masked, "plan", str(plan)), *words)
    refused(ask(masked, "retrain", str(plan)), *words)
    assert left_behind(masked) == set()


def test_an_image_size_under_the_backbones_least_is_refused(masked: Path, ask: Ask, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("name: tiny\nbackbones: [alexnet]\nweights: none\ntargets: kind\nfit: {image_size_px: 48}\n")
    refused(ask(masked, "retrain", str(plan)), "image_size_px 48", "alexnet", "63")


def test_masks_of_another_size_and_of_colours_are_set_aside_by_name(ask: Ask, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "source" / kind).mkdir(parents=True)
    for number in range(40):
        Image.new("RGB", (20, 30), (number, 200, 7)).save(tmp_path / "source" / "images" / f"{number}.png")
        mask = Image.new("L", (20, 30), number % 2)
        mask = {4: Image.new("L", (30, 30)), 9: Image.new("RGB", (20, 30))}.get(number, mask)
        mask.save(tmp_path / "source" / "masks" / f"{number}.png")
    dataset.init_workspace(tmp_path / "workspace")
    answer = ask(tmp_path / "workspace", "data", "ingest", str(tmp_path / "source"), "--json")
    assert answer.status == 0, answer
    told = json.loads(answer.out)
    reasons = {Path(bad["file"]).name: bad["reason"] for bad in told["quarantined"]}
    assert reasons.keys() == {"4.png", "9.png"}
    assert "its mask: is 30x30 px, the image 20x30 px; a mask has the size of its image" in reasons["4.png"]
    assert "3 channels; a mask has one" in reasons["9.png"]
    assert told["samples"] == 38


def test_the_status_counts_classes_labels_and_values_of_masks(masked: Path, ask: Ask) -> None:
    answer = ask(masked, "data", "status")
    assert answer.status == 0, answer
    tables = answer.out.split("masks with value")
    assert len(tables) == 3, "one of masks, one of pictures that pass for masks"
    assert [line.split()[1::2] for line in tables[1].splitlines() if line.strip().startswith("│")][:3] == [
        ["0", "12", "6", "5"],
        ["1", "12", "6", "6"],
        ["9", "0", "0", "1"],
    ]
    assert "a|x" not in answer.out, "label sets are counted label by label"


def test_targets_of_three_tasks_are_one_plan(masked: Path, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(f"{PLAN}targets: [kind, tags, {{column: mask, ignore: 9}}]\n")
    answer = ask(masked, "plan", str(tmp_path / "plan.yaml"), "--json")
    assert answer.status == 0, answer
    told = json.loads(answer.out)
    assert [variant["heads"] for variant in told["variants"]] == [{"kind": "linear", "mask": "lraspp", "tags": "linear"}]
    assert told["metric"] == "kind/accuracy"


def test_a_stack_is_refused_before_its_first_server(workspace: Path, ask: Ask) -> None:
    refused(ask(workspace, "up", "plan.yaml", "--cron", "0 25 * * *"), "'0 25 * * *'", "five fields")
    refused(ask(workspace, "up", "plan.yaml", "--cron", "nightly"), "'nightly'", "0 2 * * *")
    (workspace.parent / "texts.yaml").write_text(f"{PLAN}\nfit: {{max_tokens: 32}}\n")
    told = ask(workspace, "up", "../texts.yaml", HEADSTART_RAY_ADDRESS=DEAD)
    assert told.status == 2
    assert "tiny does not fit the data of now, on which its runs are refused: resnet18: fit's max_tokens" in told.err
    assert f"Ray at {DEAD}" in told.err
    assert left_behind(workspace) == set()


@pytest.mark.parametrize("words", [["models", "list"], ["models", "pull", "a@champion", "b"], ["predict", "a@champion", "."]])
def test_outside_a_workspace_nothing_is_made(tmp_path: Path, ask: Ask, words: list[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    refused(ask(tmp_path, *words), "is no workspace", "headstart init")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["@champion", "a/b@1", "it's@1"])
def test_what_is_no_models_name_is_said(workspace: Path, ask: Ask, tmp_path: Path, name: str) -> None:
    address = f"sqlite:///{tmp_path}/mlflow.db"
    refused(
        ask(workspace, "models", "pull", name, str(tmp_path / "new"), HEADSTART_TRACKING_ADDRESS=address), "is no model's name"
    )
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_way_is_one_message(tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "file").write_text("")
    refused(ask(tmp_path, "init", "file"), "workspace file: a file", "give a folder")


def _fail(error: BaseException, *_: object, **__: object) -> None:
    raise error


def test_a_full_disk_is_a_failure_in_one_message(workspace: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_preview, "preview", partial(_fail, OSError(errno.ENOSPC, "No space left on device", "big")))
    answer = ask(workspace, "plan", "plan.yaml")
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.startswith("headstart: big: No space left on device")


def test_ctrl_c_says_how_to_go_on(workspace: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_preview, "preview", partial(_fail, KeyboardInterrupt()))
    answer = ask(workspace, "plan", "plan.yaml")
    assert answer.status == 130
    assert "headstart: stopped; the same command goes on" in answer.err
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler, "a kind end from outside is one too"


def test_a_model_that_reads_masks_wants_a_folder_to_write_them_to(workspace: Path, tmp_path: Path, ask: Ask) -> None:
    variant = Variant(backbone="squeezenet1_1", heads=(Head(target="mask", task="segmentation", design="fcn"),))
    classes = {"mask": ["0", "9"]}
    model, preprocess = build_model(variant, classes, None), preprocess_for(variant.backbone, 64, whole=True)
    save(tmp_path / "bundle", model=model, variant=variant, classes=classes, preprocess=preprocess, facts={})
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    refused(ask(workspace, "predict", str(tmp_path / "bundle"), str(tmp_path / "0.png")), "mask", "--output")
