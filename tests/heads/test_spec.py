from heads.spec import Fit, Head, Variant

FIRST = Variant(backbone="resnet18", heads=(Head(target="a"),))


def test_settings_that_came_later_change_the_id_of_those_variants_alone_that_use_them() -> None:
    assert FIRST.variant_id == "63dfbeee22ce", "what was trained before would be trained again"
    assert FIRST.model_copy(update={"fit": Fit(stage_decay=0.5)}).variant_id != FIRST.variant_id


def test_every_setting_changes_the_id() -> None:
    others = {"augment": "none", "precision": "fp32", "patience": 3, "stage_decay": 0.5, "seed": 1, "weight_decay": 0.0}
    ids = {FIRST.model_copy(update={"fit": Fit(**{name: value})}).variant_id for name, value in others.items()}
    assert len(ids | {FIRST.variant_id}) == len(others) + 1
