"""The plan: reading, words for what is wrong, expansion, and the keys of work."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from flows.errors import AskedWrongly
from flows.gate.guards.table import SCORE_GUARDS, TRIAL_GUARDS
from flows.manifest import mask_files
from flows.plan import (
    PRIMARY,
    Plan,
    check_data,
    class_names,
    describe_variants,
    expand,
    form_values,
    groups_of,
    left_empty,
    parse_plan,
    primary_metric,
    read_plan,
    recipe_of,
    retraining_key,
    targets_of,
    variant_label,
    work_key,
)
from flows.plan.classes import count_classes
from flows.plan.expansion import recipe_key
from flows.plan.fit import RECURRENT_FIELDS, FitGrid
from flows.plan.promotion import MEASURES_OF
from flows.records import DataVersion, Mask, Sample, Weights, Work, Workers
from heads.catalogue import BACKBONE_STAGES, HEAD_DESIGNS, Task
from heads.spec import Fit, Head, Variant
from heads.tasks.table import TaskHead

PLANS = Path(__file__).parents[2] / "flows" / "plans"


PIXELS = {1: 600, 2: 400, 3: 24}


def version(**columns: tuple[str | None, ...]) -> DataVersion:
    """A data version of two samples a split; each column gives the labels a split cycles through.

    A cell under `masks/` is a mask of PIXELS.
    """
    columns = columns or {"label": ("ant", "bee")}
    samples = tuple(
        Sample(f"{split}{i}", f"{split}{i}.png", split, {name: labels[i % len(labels)] for name, labels in columns.items()})
        for split in ("train", "val", "test")
        for i in range(2)
    )
    masks = {file: Mask("m" * 32, PIXELS) for file in mask_files(samples)}
    return DataVersion("d" * 32, "r1", samples, Path("data"), (), masks)


def with_masks(data: DataVersion, **pixels: dict[int, int]) -> DataVersion:
    """The data version with other pixels in the masks named by their stems."""
    return replace(data, masks={**data.masks, **{f"masks/{stem}.png": Mask("x" * 32, found) for stem, found in pixels.items()}})


def plan(**fields: object) -> Plan:
    return parse_plan({"name": "demo", **fields})


def refusal(text: str, tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(AskedWrongly) as caught:
        read_plan(path)
    message = str(caught.value)
    assert "Value error" not in message
    assert "pydantic" not in message
    return message


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_plans_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The one of texts names a folder of weights that its reader has.
    (tmp_path / "minilm_l6_v2_fp16").mkdir()
    (tmp_path / "minilm_l6_v2_fp16" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    asked = read_plan(path)
    columns = {target.column: ("masks/m.png",) if target.task == "segmentation" else ("a", "b") for target in asked.targets or ()}
    data = version(**columns)
    if "bert" in asked.backbones:
        data = replace(data, samples=tuple(replace(sample, file=f"texts/{sample.file}") for sample in data.samples))
    check_data(asked, data)
    assert expand(asked, data)


def test_the_demo_asks_for_four_variants() -> None:
    asked = read_plan(PLANS / "demo.yaml")
    variants = expand(asked, version())
    assert asked.name == "digits"
    assert len({v.backbone for v in variants}) == 2
    assert len({v.heads[0].design for v in variants}) == 2
    assert len(variants) == 4


def test_a_plan_needs_no_more_than_a_name() -> None:
    asked = plan()
    assert (asked.backbones, asked.heads, asked.freeze, asked.weights) == (
        ("mobilenet_v2",),
        ("linear", "lraspp"),
        ("all",),
        "imagenet",
    )


def test_one_value_stands_for_a_list_of_one() -> None:
    lists = plan(backbones=["resnet18"], heads=["mlp"], freeze=["lp_ft"], targets=[{"column": "label"}], fit={"epochs": [3]})
    plain = plan(backbones="resnet18", heads="mlp", freeze="lp_ft", targets="label", fit={"epochs": 3})
    assert expand(lists, version()) == expand(plain, version())


def test_either_spelling_of_the_optimizer_is_read() -> None:
    assert plan(fit={"optimizer": "sgd"}) == plan(fit={"optimiser": "sgd"}) != plan()


def test_left_out_freezing_without_weights_is_none() -> None:
    assert plan(weights="none").freeze == ("none",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nfit: {epohcs: 3}", ["fit.epohcs", "did you mean 'epochs'?", "allowed: epochs, batch_size"]),
        ("name: a\nfrezee: all", ["frezee", "did you mean 'freeze'?", "allowed: name, targets"]),
        ("name: a\ntargets: [{colum: x}]", ["targets.0.colum", "did you mean 'column'?", "targets.0.column: missing"]),
        ("name: a\nworkers: {gpus: 1}", ["workers.gpus", "allowed: count, gpus_per_worker, cpus_per_worker"]),
        ("name: a\nbackbones: [mobilnet_v2]", ["'mobilnet_v2' is unknown", "did you mean 'mobilenet_v2'?", "resnet18"]),
        ("name: a\nheads: [transformerz]", ["head design 'transformerz' is unknown", "allowed: linear, mlp"]),
        ("name: a\nfreeze: ['upto:nosuch']", ["upto:nosuch", "mobilenet_v2 has no stage", "allowed: stem, stage1"]),
        ("name: a\nfreeze: half", ["'half' is unknown", "upto:<stage>"]),
        ("name: a\nbackbones: [resnet18, mobilenet_v2]\nfreeze: upto:layer2", ["mobilenet_v2 has no stage 'layer2'"]),
        (
            "name: a\nbackbones: [resnet18, alexnet]\nfit: {image_size_px: [224, 48]}",
            ["size_px 48", "alexnet; allowed: 63 to 1024"],
        ),
        ("name: a\nbackbones: vit_b_16\nfit: {image_size_px: 230}", ["every 16 px from 32 to 1024; nearest: 224 or 240"]),
        ("name: a\nbackbones: maxvit_t\nfit: {image_size_px: 256}", ["one size; allowed: 224"]),
        ("name: a\nweights: none\nfreeze: all", ["freeze 'all' with weights 'none'", "random"]),
        ("name: a\nweights: none\nfreeze: [none, upto:stem]", ["freeze 'upto:stem' with weights 'none'"]),
        ("name: a\nweights: imagnet", ["did you mean 'imagenet'?", "none, champion, a weights file"]),
        ("name: a\nweights: championn", ["did you mean 'champion'?", "allowed: imagenet, none"]),
        ("name: a\nweights: champion\nbackbones: [resnet18, resnet34]", ["'champion' is one model", "resnet18, resnet34"]),
        ("name: a\nweights: https://b/c.pth", ["'https://b/c.pth' are no plain s3://bucket/key", "allowed: imagenet, none"]),
        ("name: a\nweights: s3://bucket", ["'s3://bucket' are no plain s3://bucket/key"]),
        ("name: a\nweights: s3://k:pw@bucket/c.pth", ["@bucket/c.pth' are no plain s3://bucket/key"]),
        ("name: a\nweights: w.pth\nbackbones: [resnet18, resnet34]", ["'w.pth' is one file", "resnet18, resnet34"]),
        ("name: a\nweights: {resnet18: imagenet}\nbackbones: [resnet18, resnet34]", ["weights are of resnet18", "give each its"]),
        ("name: a\nweights: {resnet18: imagnet}\nbackbones: resnet18", ["'imagnet' are unknown", "did you mean 'imagenet'?"]),
        ("name: a\nweights: {resnet18: none}\nbackbones: resnet18\nfreeze: all", ["freeze 'all' with weights 'none'"]),
        ("name: a\nweights: {resnet18: 5}\nbackbones: resnet18", ["weights: should be text, got 5"]),
        ("name: a\nweights: 5", ["weights: should be text, got 5"]),
        ("name: a\nfit: {epochs: -1}", ["fit.epochs: should be greater than 0, got -1"]),
        ("name: a\nfit: {epochs: [3, 0]}", ["fit.epochs.1: should be greater than 0, got 0"]),
        ("name: a\nfit: {epochs: 2.5}", ["fit.epochs: should be a whole number, got 2.5"]),
        ("name: a\nfit: {epochs: true}", ["fit.epochs: should be a number, not true or false"]),
        ("name: a\nfit: {patience: {a: 1}}", ["fit.patience: should be a whole number, got {'a': 1}"]),
        ("name: a\nfit: {learning_rate: []}", ["fit.learning_rate: should hold at least one value"]),
        ("name: a\nfit: {learning_rate: .nan}", ["fit.learning_rate", "got nan"]),
        (
            "name: a\nfit: {loss: hinge}",
            ["fit.loss: should be 'cross_entropy', 'focal', 'dice' or 'cross_entropy_dice'", "'hinge'"],
        ),
        ("name: a\nfit: {label_smoothing: 1}", ["fit.label_smoothing: should be less than 1, got 1"]),
        ("name: a\nfit: {augment: heavy}", ["fit.augment: should be 'none', 'light', 'medium' or 'strong', got 'heavy'"]),
        ("name: a\nfit: {optimiser: adam}", ["fit.optimiser: should be 'adamw' or 'sgd', got 'adam'"]),
        ("name: a\nfit: {precision: fp16}", ["fit.precision fp16 needs GPUs", "use precision auto, fp32 or bf16"]),
        ("name: a\nfit: {flip: 3}", ["fit.flip", "got 3"]),
        ("name: a\nfit: {ema: 1}", ["fit.ema: should be less than 1, got 1"]),
        ("name: a\nfit: 3", ["fit: should be a mapping"]),
        ("name: a\ntargets: [{column: x, task: detection}]", ["targets.0.task", "'segmentation'", "got 'detection'"]),
        ("name: a\ntargets: [{column: x, ignore: [-1]}]", ["targets.0.ignore.0: should be at least 0, got -1"]),
        ("name: a\ntargets: [{column: x, ignore: true}]", ["targets.0.ignore: should be a number, not true or false"]),
        ("name: a\nfit: {mlp_depth: [1, 9]}", ["fit.mlp_depth.1: should be at most 8, got 9"]),
        ("name: a\nfit: {mlp_activation: tanh}", ["fit.mlp_activation: should be 'gelu', 'relu' or 'silu', got 'tanh'"]),
        ("name: a\npromotion: {metric: mask/iou}", ["measure 'iou' is unknown", "did you mean 'miou'?"]),
        ("name: a\ntargets: [x, x]", ["named twice: x, x"]),
        ("name: a\npromotion: {metric: breed/acuracy}", ["did you mean 'accuracy'?", "f1_macro"]),
        ("name: a\npromotion: {metric: breed/ece}", ["'breed/ece' is better the lower it is", "allowed: accuracy, top5"]),
        ("name: a\npromotion: {metric: accuracy}", ["names no target; write <column>/accuracy"]),
        ("backbones: [mobilenet_v2]", ["name: missing"]),
        ("name: a b", ["'a b' is not a name", "letters, digits"]),
        ("name: 2024", ["name: should be text, got 2024", "quotes"]),
        ("name: no", ["name: should be text, got no (put it in quotes: 'no')"]),
        ("name: 010", ["name: should be text, got 010 (put it in quotes: '010')"]),
        ("name: 1.10", ["name: should be text, got 1.10 (put it in quotes: '1.10')"]),
        ("name: 2024-01-02", ["got 2024-01-02 (put it in quotes: '2024-01-02')"]),
        ("name: ~", ["name: should be text, got ~ (put it in quotes: '~')"]),
        ("name: a\ntargets: [{column: 0x1F}]", ["targets.0.column: should be text, got 0x1F (put it in quotes: '0x1F')"]),
        ("name: a\nfit: {batch_size: 010}", ["fit.batch_size: should be a whole number, got 010", "octal; write 10"]),
        ("name: a\nfit: {batch_size: [16, -0_20]}", ["fit.batch_size.1", "got -0_20", "octal; write -20"]),
        ("name: a\nfit: {image_size_px: 00}", ["fit.image_size_px: should be a whole number, got 00", "write 0"]),
        ("name: a\nfit: {epochs: 1:30}", ["fit.epochs: should be a whole number, got 1:30", "base of 60"]),
        ("name: a\nfit: {learning_rate: 0:00.5}", ["fit.learning_rate: should be a number, got 0:00.5", "base of 60"]),
        ("name: a\nworkers: {count: 02}", ["workers.count: should be a whole number, got 02", "write 2"]),
        ("name: a\nworkers: {count: 0}", ["workers.count: should be at least 1, got 0"]),
        ("name: a\nworkers: {count: [0, 4]}", ["workers.count.0: should be at least 1, got 0"]),
        ("name: a\nworkers: {count: [1, x]}", ["workers.count.1: should be a whole number, got 'x'"]),
        ("name: a\nworkers: {count: [4, 2]}", ["workers.count: [4, 2] is no range of workers", "[least, most], such as [1, 4]"]),
        ("name: a\nworkers: {count: [4]}", ["workers.count: [4] is no range of workers", "give a number"]),
        ("name: a\nworkers: {count: [1, 2, 4]}", ["workers.count: [1, 2, 4] is no range of workers"]),
        ("name: a\nworkers: {count: yes}", ["workers.count: should be a number, not true or false"]),
        ("name: a\nfit: {epochs: 0o17}", ["fit.epochs: should be a whole number, got '0o17'"]),
        ("name: a\nfit: {epochs: yes}", ["fit.epochs: should be a number, not true or false"]),
        ("name: a\nfit: {loss: off}", ["fit.loss: should be 'cross_entropy'", "got off"]),
        ("name: [a", ["not valid YAML, line 1, column 9"]),
        ("name: a\nfit:\n\tepochs: 3", ["not valid YAML, line 3, column 1"]),
        ("name: a\nname: b", ["line 2, column 1", "'name' stands twice"]),
        ("- name: a", ["a mapping of keys to values is expected"]),
        ("", ["a mapping of keys to values is expected, got nothing"]),
    ],
)
def test_a_wrong_plan_is_refused_with_words_that_help(text: str, words: list[str], tmp_path: Path) -> None:
    message = refusal(text, tmp_path)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("written", "read"),
    [("8", 8), ("08", 8), ("0x10", 16), ("0b11", 3), ("1_000", 1000), ("'010'", 10), ("+7", 7), ("[1, 2]", (1, 2))],
)
def test_a_whole_number_is_the_one_that_is_written(written: str, read: object, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(f"name: a\nfit: {{batch_size: {written}}}")
    assert read_plan(tmp_path / "plan.yaml").fit.batch_size in (read, (read,))


@pytest.mark.parametrize(
    ("written", "read"), [("1e-3", 0.001), ("1.0e-3", 0.001), ("0.010", 0.01), (".5", 0.5), ("1e-03", 0.001)]
)
def test_a_number_with_an_exponent_is_one_though_yaml_takes_it_for_text(written: str, read: float, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(f"name: a\nfit: {{learning_rate: {written}}}")
    assert read_plan(tmp_path / "plan.yaml").fit.learning_rate in (read, (read,))


def test_every_fault_is_named_once(tmp_path: Path) -> None:
    message = refusal("name: a\nfit: {batch_size: x, seed: [1, y]}\ntargets: [{column: x, task: z}]", tmp_path)
    assert message.splitlines()[1:] == [
        "  - targets.0.task: should be 'classification', 'multilabel', 'segmentation' or 'tagging', got 'z'",
        "  - fit.batch_size: should be a whole number, got 'x'",
        "  - fit.seed.1: should be a whole number, got 'y'",
    ]


def test_a_missing_plan_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="there is no plan"):
        read_plan(tmp_path / "nosuch.yaml")
    with pytest.raises(AskedWrongly, match="cannot be read"):
        read_plan(tmp_path)


def test_each_backbone_may_have_weights_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "r18.pth").touch()
    (tmp_path / "plan.yaml").write_text(
        "name: a\nbackbones: [mobilenet_v2, resnet18]\nweights: {mobilenet_v2: imagenet, resnet18: r18.pth}\nfreeze: none"
    )
    asked = read_plan(tmp_path / "plan.yaml")
    assert [asked.weights_of(name) for name in asked.backbones] == ["imagenet", str(tmp_path / "r18.pth")]
    assert plan(weights={"mobilenet_v2": "none"}, backbones=["mobilenet_v2"]).freeze == ("none",)


def test_a_relative_weights_file_counts_from_the_current_directory_then_from_the_plans_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (there / "plan.yaml").write_text("name: a\nweights: w.pth")
    monkeypatch.chdir(here)
    with pytest.raises(AskedWrongly, match=r"there is no file 'w\.pth'"):
        read_plan(there / "plan.yaml")
    (there / "w.pth").touch()
    assert read_plan(there / "plan.yaml").weights == str(there / "w.pth")
    (here / "w.pth").touch()
    assert read_plan(there / "plan.yaml").weights == str(here / "w.pth")


def test_a_number_of_workers_may_be_a_range_which_changes_no_variant_and_no_recipe() -> None:
    ranged, fixed = plan(workers={"count": [1, 4], "cpus_per_worker": 2}), plan(workers={"count": 4, "cpus_per_worker": 2})
    assert (ranged.workers.group(), fixed.workers.group()) == (Workers(4, 0, 2, least=1), Workers(4, 0, 2))
    assert (ranged.workers.group().fewest, fixed.workers.group().fewest) == (1, 4)
    assert plan(workers={"count": [4, 4]}).workers.group() == Workers(4)
    assert parse_plan(ranged.model_dump(mode="json")) == ranged, "it survives the form"
    variants = expand(ranged, version())
    assert variants == expand(fixed, version())
    assert recipe_key(ranged, variants) == recipe_key(fixed, variants)


def test_a_plan_survives_the_form() -> None:
    asked = plan(targets="label", freeze=["all", "lp_ft"], fit={"learning_rate": [1e-3, "3e-4"], "patience": 2})
    assert parse_plan(asked.model_dump(mode="json")) == asked
    assert Plan.model_validate_json(asked.model_dump_json()) == asked


def test_the_form_shows_few_settings_and_the_rare_ones_together_at_its_end() -> None:
    schema = Plan.model_json_schema()
    assert list(schema["properties"])[-1] == "rare"
    assert "screening" not in schema["properties"]
    assert len(schema["$defs"]["FitGrid"]["properties"]) <= 8
    assert {"ema", "mixup", "weight_decay", "screening"} <= schema["$defs"]["Rare"]["properties"].keys()
    patterns = {*schema["patternProperties"], *schema["$defs"]["FitGrid"]["patternProperties"]}
    assert {"^screening$", "^ema$"} <= patterns, "a call by API gives them where a file does"


def test_a_plan_comes_back_from_the_form_as_it_was_with_rare_settings_or_none() -> None:
    plain, rare = plan(), plan(freeze=["lp_ft"], screening=2, fit={"ema": 0.9, "mixup": [0.1, 0.2]})
    assert form_values(plain)["rare"] is None
    assert form_values(rare)["rare"]["ema"] == 0.9
    for asked in (plain, rare):
        back = parse_plan(form_values(asked))
        assert back == asked
        assert back.model_dump() == asked.model_dump()
        assert left_empty(back) == ()


def test_a_rare_setting_is_given_once_and_checked_where_it_stands() -> None:
    with pytest.raises(AskedWrongly, match="ema: given under rare and where a plan has it"):
        parse_plan({"name": "a", "fit": {"ema": 0.5}, "rare": {"ema": 0.9}})
    with pytest.raises(AskedWrongly, match=r"rare\.ema: should be less than 1"):
        parse_plan({"name": "a", "rare": {"ema": 2}})


def test_a_number_left_empty_in_the_form_is_told_with_the_default_that_counts() -> None:
    values = form_values(plan(fit={"epochs": 3}))
    del values["fit"]["epochs"], values["promotion"]["alpha"]
    assert left_empty(parse_plan(values)) == ("fit.epochs 10", "promotion.alpha 0.05")


def test_guards_are_chosen_by_name_and_yaml_may_read_off_as_false(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\npromotion: {guards: {worst_class: block, loads: off}}\n")
    chosen = read_plan(tmp_path / "a.yaml").promotion.guards.severities
    assert (chosen["worst_class"], chosen["loads"], chosen["latency"]) == ("block", "off", "warn")
    for wrong, words in [
        (
            {"worst_clas": "warn"},
            r"promotion\.guards\.worst_clas: unknown key .*did you mean 'worst_class'\? allowed",
        ),
        ({"loads": True}, r"promotion\.guards\.loads: should be 'block', 'warn' or 'off', got True"),
        ("block", r"promotion\.guards: should be a mapping of keys to values, got 'block'"),
    ]:
        with pytest.raises(AskedWrongly, match=words):
            parse_plan({"name": "a", "promotion": {"guards": wrong}})


def test_a_plan_chooses_every_guard_of_the_gate_that_may_be_chosen() -> None:
    assert {*SCORE_GUARDS, *TRIAL_GUARDS} <= set(plan().promotion.guards.severities)


def test_a_retraining_keeps_its_key_unless_a_guard_is_chosen_otherwise() -> None:
    plain = key_of(plan(), version())
    assert key_of(plan(promotion={"guards": {"latency": "warn"}}), version()) == plain
    assert key_of(plan(promotion={"guards": {"latency": "off"}}), version()) != plain


def test_groups_are_the_cells_of_a_column_on_test_samples() -> None:
    data = version(breed=("a", "b"), site=("north", "south"))
    asked = plan(targets="breed", promotion={"group": "site"})
    test = {s.digest: s.labels["site"] for s in data.samples if s.split == "test"}
    assert test
    assert groups_of(asked, data) == test
    assert groups_of(plan(targets="breed"), data) == {}
    grouped = replace(data, samples=tuple(replace(s, group="g") for s in data.samples))
    assert groups_of(plan(targets="breed"), grouped) == dict.fromkeys(test, "g")
    for column, words in [("sight", "did you mean 'site'"), ("group", "allowed: breed, site")]:
        with pytest.raises(AskedWrongly, match=f"promotion.group: .*{words}"):
            check_data(plan(targets="breed", promotion={"group": column}), data)


def test_the_level_of_promotion_names_the_test_of_every_task() -> None:
    told = str(Plan.model_json_schema()["$defs"]["Promotion"]["properties"]["alpha"]["description"])
    assert "McNemar" in told
    assert "bootstrap" in told


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        plan().name = "other"  # type: ignore[misc]


def test_every_field_of_the_form_says_what_it_is() -> None:
    schema = Plan.model_json_schema()
    for properties in (schema["properties"], *(part["properties"] for part in schema["$defs"].values())):
        assert [name for name, field in properties.items() if not field.get("description")] == []
        # Prefect's form reads them as Markdown, which takes <column> for a tag of HTML and shows nothing.
        assert not [name for name, field in properties.items() if "<" in re.sub("`[^`]*`", "", field["description"])]
    assert schema["properties"]["backbones"]["items"]["enum"] == list(BACKBONE_STAGES)


@pytest.mark.parametrize("name", [name for name in Fit.model_fields if name not in ("augment", "precision")])
@pytest.mark.parametrize("value", [-1, 0, 1e-9, 1, 31, 32, 1024, 1025, 2**31 - 1, 2**31])
def test_the_grid_allows_exactly_what_a_fit_allows(name: str, value: float) -> None:
    def allowed(model: type[Fit] | type[FitGrid], given: object) -> bool:
        try:
            model.model_validate({name: given})
        except ValidationError:
            return False
        return True

    assert allowed(FitGrid, value) == allowed(Fit, value) == allowed(FitGrid, [value])


def test_the_grid_has_the_settings_and_defaults_of_a_fit() -> None:
    assert FitGrid().model_dump(exclude=set(RECURRENT_FIELDS)) == Fit().model_dump()


def test_a_plan_names_sizes_of_recurrent_networks_as_fit_options() -> None:
    texts = version(intent=("a", "b"))
    fit = {"recurrent_layers": [1, 2], "recurrent_width": [128, 64], "bidirectional": False}
    asked = plan(backbones=["textcnn", "lstm"], weights={"textcnn": "none", "lstm": "none"}, freeze=["none"], fit=fit)
    variants = expand(asked, texts)
    sizes = ["lstm-1x128-forward", "lstm-1x64-forward", "lstm-2x128-forward", "lstm-2x64-forward"]
    assert [variant.backbone for variant in variants] == ["textcnn", *sizes]
    assert {asked.weights_of(variant.backbone) for variant in variants} == {"none"}
    usual = plan(backbones=["lstm"], weights="none", freeze=["none"], fit={"recurrent_width": 128, "bidirectional": True})
    assert [variant.backbone for variant in expand(usual, texts)] == ["lstm"], "it keeps its name, and so its key"
    deep = plan(backbones=["gru"], weights="none", freeze=["gradual"], fit={"recurrent_layers": 3})
    assert [variant.stages[-1] for variant in expand(deep, texts)] == ["layer3"]


@pytest.mark.parametrize(
    ("backbones", "fit", "words"),
    [
        (
            ["textcnn"],
            {"recurrent_layers": 2},
            "fit's recurrent_layers is for lstm, gru, rnn, and backbones lists textcnn",
        ),
        (["resnet18"], {"bidirectional": False}, "fit's bidirectional is for lstm, gru, rnn, and backbones lists resnet18"),
        (["lstm"], {"recurrent_width": [64, 5000]}, "fit.recurrent_width.1: should be at most 4096, got 5000"),
        (["lstm"], {"recurrent_layers": 9}, "fit.recurrent_layers: should be at most 8, got 9"),
        (["lstm"], {"bidirectional": "both"}, "fit.bidirectional: "),
    ],
)
def test_sizes_that_no_backbone_of_the_plan_has_are_refused(backbones: list[str], fit: dict[str, object], words: str) -> None:
    with pytest.raises(AskedWrongly, match=re.escape(words)):
        plan(backbones=backbones, weights="none", freeze=["none"], fit=fit)


def test_a_grid_is_expanded_in_the_plans_order_and_each_variant_once() -> None:
    asked = plan(
        backbones=["resnet18", "mobilenet_v2"],
        heads=["linear", "mlp", "linear"],
        freeze=["all"],
        fit={"learning_rate": [1e-3, 3e-4]},
    )
    found = [(v.backbone, v.heads[0].design, v.fit.learning_rate) for v in expand(asked, version())]
    assert found == [(b, h, r) for b in ("resnet18", "mobilenet_v2") for h in ("linear", "mlp") for r in (1e-3, 3e-4)]


def test_every_target_tries_every_design() -> None:
    data = version(breed=("a", "b"), species=("cat", "dog"))
    variants = expand(plan(targets=["species", "breed"], heads=["linear", "mlp"]), data)
    assert [{h.target: h.design for h in v.heads} for v in variants] == [
        {"breed": one, "species": other} for one in ("linear", "mlp") for other in ("linear", "mlp")
    ]
    assert variant_label(variants[1], variants) == "mobilenet_v2 · breed linear + species mlp · all"


def test_a_grid_that_is_too_large_is_refused_before_it_is_built() -> None:
    asked = plan(heads=["linear", "mlp"], fit={"seed": list(range(10_000)), "epochs": [1, 2]})
    with pytest.raises(AskedWrongly, match=r"40000 variants \(2 heads x 2 fit.epochs x 10000 fit.seed\); at most 512"):
        expand(asked, version())


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ({"flip": True, "image_size_px": 64}, "textcnn: fit's flip, image_size_px is for images, and textcnn reads texts"),
        ({"views": 2}, "textcnn: views 2 of texts that nothing varies would all be one"),
        ({"views": 2, "word_dropout": [0.1, 0.0]}, "textcnn: views 2 of texts that nothing varies would all be one"),
    ],
)
def test_a_backbone_and_settings_that_do_not_go_together_are_refused_in_words(fit: dict[str, object], words: str) -> None:
    asked = plan(backbones=["textcnn"], weights="none", freeze=["none"], fit=fit)
    with pytest.raises(AskedWrongly, match=re.escape(words)):
        expand(asked, version())


def test_the_one_target_of_a_data_set_need_not_be_named() -> None:
    assert expand(plan(), version())[0].heads[0].target == "label"
    head = expand(plan(), version(mask=("masks/m.png",)))[0].heads[0]
    assert (head.target, head.task, head.design) == ("mask", "segmentation", "lraspp")


@pytest.mark.parametrize(
    ("fields", "columns", "words"),
    [
        ({}, {"breed": ("a", "b"), "species": ("c", "d")}, "its columns are breed, species; name them"),
        ({}, {"breed": ("a", "b"), "mask": ("masks/m.png",)}, "its columns are breed, mask; name them"),
        (
            {"targets": {"column": "mask", "task": "classification"}},
            {"mask": ("masks/m.png",)},
            "'mask' holds masks, and its task is given as classification; allowed: segmentation, or leave task out",
        ),
        (
            {"targets": {"column": "breed", "task": "segmentation"}},
            {"breed": ("a", "b")},
            "'breed' holds class labels, and its task is given as segmentation; allowed: classification, multilabel",
        ),
        ({"targets": {"column": "breed", "ignore": 3}}, {"breed": ("a", "b")}, r"ignore \[3\] is for values of masks"),
        (
            {"fit": {"loss": "dice"}},
            {"breed": ("a", "b")},
            r"dice is of masks.*breed: classification.*allowed: cross_entropy, focal",
        ),
        (
            {"promotion": {"metric": "breed/miou"}},
            {"breed": ("a", "b")},
            "miou is no measure of classification, which 'breed' is; allowed: breed/accuracy, breed/top5",
        ),
        (
            {"promotion": {"metric": "mask/accuracy"}},
            {"mask": ("masks/m.png",)},
            "accuracy is no measure of segmentation, which 'mask' is; allowed: mask/miou, mask/pixel_accuracy, mask/dice",
        ),
        (
            {"targets": {"column": "mask", "ignore": [1, 3]}},
            {"mask": ("masks/m.png",)},
            "at least two classes in the train split; found: 2 besides 1, 3, which it ignores",
        ),
        ({"targets": "tags"}, {"tags": ("a|", None)}, "at least two classes in the train split; found: a; add training samples"),
        ({"targets": "mask"}, {"mask": (None,), "breed": ("a", "b")}, "'mask' needs at least two classes.*found: none"),
        ({"targets": "colour"}, {"breed": ("a", "b")}, "no column 'colour'; allowed: breed"),
        ({"targets": "bred"}, {"breed": ("a", "b")}, "did you mean 'breed'"),
        ({"promotion": {"metric": "bred/f1_macro"}}, {"breed": ("a", "b")}, "did you mean 'breed'.*allowed: breed/f1_macro"),
        (
            {"promotion": {"guards": {"robustness": "block"}}},
            {"mask": ("masks/m.png",)},
            "guards.robustness: block has nothing to block by.*'mask', which ranks, holds masks; write robustness: off",
        ),
        ({}, {"label": ("ant",)}, "at least two classes in the train split; found: ant"),
        ({}, {"label": (None,)}, "at least two classes in the train split; found: none"),
    ],
)
def test_data_that_cannot_serve_the_plan_is_refused(
    fields: dict[str, object], columns: dict[str, tuple[str | None, ...]], words: str
) -> None:
    with pytest.raises(AskedWrongly, match=words):
        check_data(plan(**fields), version(**columns))


def test_a_workspace_without_data_is_refused() -> None:
    with pytest.raises(AskedWrongly, match="headstart data ingest"):
        check_data(plan(), replace(version(), samples=()))


def test_nothing_to_rank_on_and_unseen_classes_are_refused() -> None:
    data = version()
    with pytest.raises(AskedWrongly, match="no label in the val split"):
        check_data(plan(), replace(data, samples=tuple(s for s in data.samples if s.split != "val")))
    wasp = Sample("w", "w.png", "test", {"label": "wasp"})
    with pytest.raises(AskedWrongly, match="the test split holds classes that train lacks: wasp"):
        check_data(plan(), replace(data, samples=(*data.samples, wasp)))


def test_a_head_whose_labels_are_all_missing_in_a_split_is_refused() -> None:
    data = version(breed=("a", "b"), mask=("masks/m.png",))
    bare = (replace(s, labels={**s.labels, "mask": None}) if s.split == "val" else s for s in data.samples)
    with pytest.raises(AskedWrongly, match="'mask' has no label in the val split"):
        check_data(plan(targets=["breed", "mask"]), replace(data, samples=tuple(bare)))


def test_mask_values_that_training_never_sees_are_listed_with_their_masks() -> None:
    data = version(mask=("masks/train.png", "masks/seen.png"))
    held_out = [replace(s, labels={"mask": f"masks/h{i}.png"}) for i, s in enumerate(data.samples) if s.split != "train"]
    samples = (*(s for s in data.samples if s.split == "train"), *held_out)
    grown = with_masks(replace(data, samples=samples), h2={1: 5, 9: 1}, h3={2: 5, 9: 2}, h4={7: 1}, h5={1: 1})
    words = r"no training mask has: 7 \(1 mask\), 9 \(2 masks\); allowed: 1, 2, 3\..*ignore: \[7, 9\]"
    with pytest.raises(AskedWrongly, match=words):
        check_data(plan(), grown)
    check_data(plan(targets={"column": "mask", "ignore": [9, 7, 250]}), grown)


def test_pictures_in_the_place_of_masks_are_told_apart() -> None:
    data = with_masks(version(mask=("masks/m.png",)), m=dict.fromkeys(range(300), 1))
    with pytest.raises(AskedWrongly, match="300 different values, from 0 to 299; these look like pictures rather than masks"):
        check_data(plan(), data)


# An object's pixels on their background, and the shades between them that smoothing or JPEG leaves.
SHADES = {0: 500_000, 255: 400_000} | dict.fromkeys(range(20, 180), 50)


def test_masks_of_shades_are_refused_and_told_which_and_what_to_do() -> None:
    data = with_masks(version(mask=("masks/a.png", "masks/b.png")), a=SHADES, b=SHADES)
    words = r"162 different values, and in 2 of 2 masks, e\.g\. masks/a\.png, .*like shades.*PNG.*nearest neighbour.*`ignore`"
    with pytest.raises(AskedWrongly, match=words):
        check_data(plan(), data)
    check_data(plan(targets={"column": "mask", "ignore": [*range(20, 180)]}), data)


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param(dict.fromkeys(range(150), 100), id="as large as classes are"),
        pytest.param({0: 90_000} | dict.fromkeys(range(3, 450, 3), 1), id="not beside each other"),
        pytest.param({value: count for value, count in SHADES.items() if not 100 < value < 200}, id="no more than many classes"),
        pytest.param(SHADES | dict.fromkeys([*range(1, 11), *range(180, 255)], 50_000), id="beside many that are none"),
    ],
)
def test_many_classes_are_no_shades(counts: dict[int, int]) -> None:
    check_data(plan(), with_masks(version(mask=("masks/a.png",)), a=counts))


def test_a_few_masks_of_shades_among_many_classes_are_no_reason_to_refuse() -> None:
    classes = dict.fromkeys(range(150), 100)
    check_data(plan(), with_masks(version(mask=("masks/a.png", "masks/b.png")), a=SHADES, b=classes | {255: 100}))


def test_masks_that_an_older_ingest_did_not_count_ask_for_another() -> None:
    data = replace(version(mask=("masks/m.png",)), masks={})
    with pytest.raises(AskedWrongly, match=r"1 of 1 masks were never counted, e.g. masks/m.png.*headstart data ingest SOURCE"):
        check_data(plan(), data)


def test_every_table_of_tasks_has_every_task() -> None:
    from flows.gate.measures import MEASURES as TESTED
    from heads.catalogue import TASK_FACTS
    from heads.tasks.table import TASKS

    tasks = get_args(Task)
    assert tuple(TASKS) == tuple(TASK_FACTS) == tuple(HEAD_DESIGNS) == tasks
    # Classes are tested by McNemar on accuracy, whatever measure ranks them.
    for task in [task for task, facts in TASK_FACTS.items() if facts.tells != "class"]:
        assert {name for measures in TESTED[TASK_FACTS[task].tells] for name in measures} == set(TASK_FACTS[task].promotable)
    for task, facts in TASK_FACTS.items():
        missing = [each for each in vars(TaskHead) if not each.startswith("_") and not hasattr(TASKS[task], each)]
        assert missing == [], f"{task} lacks {missing}"
        assert facts.primary in facts.promotable


def test_the_task_is_found_out_from_the_cells() -> None:
    data = version(breed=("a", "b"), tags=("b| a", "c"), mask=("masks/m.png", None))
    found = {target.column: target.task for target in targets_of(plan(targets=["breed", "tags", "mask"]), data)}
    assert found == {"breed": "classification", "tags": "multilabel", "mask": "segmentation"}
    asked = plan(targets=[{"column": "breed", "task": "multilabel"}, {"column": "tags", "task": ""}])
    assert [target.task for target in targets_of(asked, data)] == ["multilabel", "multilabel"]


def test_the_classes_of_every_task_and_how_often_they_occur() -> None:
    data = with_masks(version(breed=("b", "a"), tags=("b| a|", "a"), mask=("masks/m.png", None)), m={10: 7, 2: 5, 255: 3})
    targets = targets_of(plan(targets=["breed", "tags", {"column": "mask", "ignore": 255}]), data)
    assert [class_names(target, data) for target in targets] == [("a", "b"), ("a", "b"), ("2", "10")]
    assert [tuple(count_classes(target, data, "train").values()) for target in targets] == [(1, 1), (2, 1), (5, 7)]


def test_each_target_tries_the_designs_of_its_task() -> None:
    data = version(breed=("a", "b"), mask=("masks/m.png",))
    asked = plan(targets=["breed", {"column": "mask", "ignore": [3, 0, 3]}], heads=["linear", "mlp", "lraspp"])
    variants = expand(asked, data)
    assert [{h.target: h.design for h in v.heads} for v in variants] == [
        {"breed": "linear", "mask": "lraspp"},
        {"breed": "mlp", "mask": "lraspp"},
    ]
    assert variants[0].heads[1].ignore == (0, 3)


@pytest.mark.parametrize("task", HEAD_DESIGNS)
def test_a_target_without_a_design_of_its_task_is_refused(task: str) -> None:
    cells = {
        "classification": ("a", "b"),
        "multilabel": ("a|b", "b"),
        "segmentation": ("masks/m.png",),
        "tagging": ("tags: O B-a", "tags: B-b"),
    }
    others = ["lraspp"] if task != "segmentation" else ["linear", "mlp"]
    words = f"none of {', '.join(others)} is a design of {task}, which 'x' is; add one of: {', '.join(HEAD_DESIGNS[task])}"
    with pytest.raises(AskedWrongly, match=words):
        expand(plan(heads=others), version(x=cells[task]))


NO_PROMOTERS = {"ece", "brier", "loss", "span_precision", "span_recall", "token_accuracy"}


def test_the_measures_are_those_that_the_heads_tell_but_for_those_that_may_not_promote() -> None:
    import torch

    from heads.tasks.table import TASKS

    logits = {
        "classification": torch.eye(6),
        "multilabel": torch.eye(6),
        "segmentation": torch.eye(6).reshape(6, 6, 1, 1),
        "tagging": torch.eye(5)[:, :, None],  # O, and B and I of two types
    }
    labels = {
        "classification": torch.arange(6),
        "multilabel": torch.eye(6).long(),
        "segmentation": torch.arange(6)[:, None, None],
        "tagging": torch.arange(5)[:, None],
    }
    for task, kind in TASKS.items():
        weights = torch.ones(len(logits[task]))
        told = kind.measures(*(f(logits[task], labels[task], weights) for f in (kind.count, kind.score)))
        assert set(MEASURES_OF[task]) == told.keys() - NO_PROMOTERS
        assert PRIMARY[task] in MEASURES_OF[task]


def test_top5_cannot_promote_where_there_are_no_more_than_five_classes() -> None:
    asked = plan(promotion={"metric": "label/top5"})
    with pytest.raises(AskedWrongly, match="top5 needs more than five classes, and 'label' has 2"):
        check_data(asked, version())
    six = (Sample(name, name, "train", {"label": name}) for name in "cdef")
    data = version(label=("a", "b"))
    check_data(asked, replace(data, samples=(*data.samples, *six)))


def test_good_data_serves_the_plan() -> None:
    check_data(plan(), version())
    check_data(plan(targets="breed", promotion={"metric": "breed/f1_macro"}), version(breed=("a", "b"), species=("c",)))


def test_the_measure_follows_from_the_first_targets_task() -> None:
    data = version(breed=("a", "b"), tags=("a|b", "b"), mask=("masks/m.png",))
    for column, measure in {"breed": "accuracy", "tags": "average_precision", "mask": "miou"}.items():
        assert primary_metric(plan(targets=column), data) == f"{column}/{measure}"


def test_the_measure_is_the_plans_or_the_accuracy_of_its_first_target() -> None:
    data = version(breed=("a", "b"), species=("c", "d"))
    assert primary_metric(plan(targets=["species", "breed"]), data) == "species/accuracy"
    assert primary_metric(plan(targets=["species", "breed"], promotion={"metric": "breed/f1_macro"}), data) == "breed/f1_macro"


def key_of(asked: Plan, data: DataVersion, digest: str = "w") -> str:
    """The key of a plan whose variants all start from the weights of this digest."""
    weights, variants = Weights(digest), expand(asked, data)
    works = [Work(work_key(v.variant_id, digest, data.digest), v, weights) for v in variants]
    return retraining_key(asked, data, works)


def test_formatting_does_not_change_the_identity_of_work(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nbackbones: [resnet18]\nfit: {epochs: 3, learning_rate: [0.001, 3.0e-4]}\n")
    (tmp_path / "b.yaml").write_text(
        "# a comment\nfit:\n  learning_rate:\n  - 3e-4\n  - 1e-3\n  epochs: '3'\n  seed: 0\nworkers: {count: 2}\n"
        "promotion: {metric: label/accuracy}\nbackbones: resnet18\nname: a\n"
    )
    one, other = read_plan(tmp_path / "a.yaml"), read_plan(tmp_path / "b.yaml")
    assert {v.variant_id for v in expand(one, version())} == {v.variant_id for v in expand(other, version())}
    assert key_of(one, version()) == key_of(other, version())


def test_what_matters_changes_the_identity_of_a_retraining() -> None:
    def key(asked: Plan, digest: str = "w", data: DataVersion | None = None) -> str:
        return key_of(asked, data or version(), digest)

    keys = [
        key(plan()),
        key(plan(heads="mlp")),
        key(plan(fit={"epochs": 3})),
        key(plan(promotion={"alpha": 0.01})),
        key(plan(promotion={"metric": "label/f1_macro"})),
        key(parse_plan({"name": "other"})),
        key(plan(), "x"),
        key(plan(), data=replace(version(), digest="e" * 32)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(plan()) == key(plan(), data=replace(version(), revision="r2"))


def test_what_is_trained_otherwise_than_before_has_another_recipe() -> None:
    recipes = [
        recipe_of(Variant(backbone=backbone, heads=tuple(Head(target=task, task=task) for task in tasks)))
        for backbone, tasks in (
            ("resnet18", ("classification",)),
            ("resnet18", ("classification", "multilabel")),
            ("lstm", ("tagging",)),
        )
    ]
    assert recipes == [2, 3, 3]


def test_work_is_keyed_by_variant_weights_and_data() -> None:
    keys = {
        work_key("v", "w", "d"),
        work_key("v", "w", "e"),
        work_key("v", "x", "d"),
        work_key("u", "w", "d"),
        work_key("vw", "", "d"),
        work_key("v", "w", "d", recipe=1),
    }
    assert len(keys) == 6
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    assert work_key("v", "w", "d") == work_key("v", "w", "d")


def test_a_fit_setting_that_came_later_leaves_the_ids_of_finished_work_alone() -> None:
    variant = expand(plan(), version())[0]
    assert variant.variant_id == "f20751a39c51"
    changed = [
        expand(plan(fit=fit), version())[0]
        for fit in ({"loss": "focal"}, {"mixup": 0.2}, {"label_smoothing": 0.1}, {"epochs": 11})
    ]
    assert len({variant.variant_id, *(v.variant_id for v in changed)}) == 5


def test_a_table_shows_only_the_fit_settings_that_differ() -> None:
    variants = expand(plan(heads=["linear", "mlp"], fit={"learning_rate": [1e-3, 3e-4], "patience": [1, 2]}), version())
    rows = describe_variants(variants)
    assert [row.variant_id for row in rows] == [v.variant_id for v in variants]
    assert rows[0].fit == {"learning_rate": 1e-3, "patience": 1}
    assert rows[3].label == "mobilenet_v2 · linear · all · learning_rate 0.0003 · patience 2"
    assert variant_label(variants[0], variants[:1]) == "mobilenet_v2 · linear · all"
    assert len({row.label for row in rows}) == len(rows)


def test_the_plan_and_the_gate_load_without_torch_or_servers() -> None:
    code = (
        "import sys, flows.plan, flows.gate; print([m for m in ('torch', 'prefect', 'ray', 'mlflow', 'dvc') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PLANS.parents[1])
    assert done.stdout.strip() == "[]"
