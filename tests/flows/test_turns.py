"""Masks lie as their images do, decided for a data set as a whole, and a picture that is read anew makes a new data version."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from flows.errors import AskedWrongly
from flows.landing import ingest
from flows.manifest import RECIPE, parse, parse_masks, render, render_masks
from flows.records import DataVersion, Mask, Sample
from flows.sample_files import check_turned, locate, locate_mask
from heads.data.decoding import decode, decode_mask
from tests.flows.test_landing import draw, masks, pairs, samples, tree
from tests.heads.test_recipes import encoded, png


def pair(
    root: Path, name: str, orientation: int, *, as_stored: bool, size: tuple[int, int] = (6, 8), kind: str = "png"
) -> np.ndarray:
    """An image with an orientation and its mask; gives the mask as it is right once it stands upright."""
    stored = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size) % 5 % 3
    colours = np.stack([stored * 80, stored * 40, np.full_like(stored, len(name))], axis=2)
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "masks").mkdir(exist_ok=True)
    (root / "images" / f"{name}.{kind}").write_bytes(encoded(colours, {"tif": "TIFF"}.get(kind, "PNG"), orientation))
    with Image.open(io.BytesIO(encoded(stored, "PNG", orientation))) as twin:
        upright = np.asarray(ImageOps.exif_transpose(twin))
    Image.fromarray(stored if as_stored else upright).save(root / "masks" / f"{name}.png")
    return upright


def read(data: Path, name: str) -> np.ndarray:
    """A mask as training reads it."""
    sample = next(sample for sample in samples(data).values() if Path(sample.file).stem == name)
    mask = str(sample.labels["mask"])
    return decode_mask(data / mask, data / sample.file, as_stored=masks(data)[mask].as_stored)


TURNS = [(orientation, (6, 8)) for orientation in (2, 3, 4)] + [(orientation, (7, 7)) for orientation in range(2, 9)]


def test_masks_whose_size_tells_nothing_are_turned_where_others_prove_it(tmp_path: Path) -> None:
    source, data = pairs(tmp_path / "source"), tmp_path / "ws/data"
    expected = {f"t{i}": pair(source, f"t{i}", o, as_stored=True, size=size) for i, (o, size) in enumerate(TURNS)}
    expected |= {"proof": pair(source, "proof", 6, as_stored=True)}
    report = ingest(source, data)
    assert (report.quarantined, report.num_samples) == ((), 24 + len(expected))
    for name, upright in expected.items():
        assert np.array_equal(read(data, name), upright), name
    (warning,) = report.warnings
    assert warning.startswith(f"{len(TURNS)} masks of 'mask', e.g. masks/t0.png, are turned as their images are")
    told = {file: mask.recipe for file, mask in masks(data).items() if mask.recipe != 1}
    assert told == {f"masks/t{i}.png": 3 for i in range(len(TURNS))}, "the one whose size tells needs no word"
    before = tree(data)
    again = ingest(source, data)
    assert (again.warnings, again.unchanged, tree(data)) == ((), again.num_samples, before)


@pytest.mark.parametrize("orientation", [3, 2, 6])
def test_masks_drawn_upright_stay_where_others_prove_that(orientation: int, tmp_path: Path) -> None:
    source, data = pairs(tmp_path / "source"), tmp_path / "ws/data"
    pair(source, "proof", 8, as_stored=False)
    upright = pair(source, "square", orientation, as_stored=False, size=(7, 7))
    assert ingest(source, data).warnings == ()
    assert np.array_equal(read(data, "square"), upright)
    assert (data / "masks.csv").read_text().startswith("file,digest,pixels\n")


def test_where_nothing_proves_how_masks_are_drawn_a_person_is_told(tmp_path: Path) -> None:
    source, data = pairs(tmp_path / "source"), tmp_path / "ws/data"
    upright = pair(source, "half", 3, as_stored=False)
    (warning,) = ingest(source, data).warnings
    assert "nothing tells whether 1 masks of 'mask', e.g. masks/half.png, are drawn" in warning
    assert np.array_equal(read(data, "half"), upright)
    assert (data / "masks.csv").read_text().startswith("file,digest,pixels\n")


def test_proofs_that_contradict_each_other_decide_for_their_own_pairs_alone(tmp_path: Path) -> None:
    source, data = pairs(tmp_path / "source"), tmp_path / "ws/data"
    names = {"one": (6, True), "other": (8, False), "half": (3, False)}
    expected = {name: pair(source, name, o, as_stored=as_stored) for name, (o, as_stored) in names.items()}
    (warning,) = ingest(source, data).warnings
    assert "some masks of 'mask' are drawn on images as these are stored (e.g. masks/one.png), others on upright ones" in warning
    assert "1 whose sizes tell nothing are taken as upright, e.g. masks/half.png" in warning
    for name, upright in expected.items():
        assert np.array_equal(read(data, name), upright), name


def test_a_proof_that_comes_later_turns_what_came_before_and_holds_when_it_goes(tmp_path: Path) -> None:
    first, second, data = pairs(tmp_path / "first"), tmp_path / "second", tmp_path / "ws/data"
    half = pair(first, "half", 3, as_stored=True)
    ingest(first, data)
    assert not np.array_equal(read(data, "half"), half), "taken as upright, with a warning"
    pair(second, "proof", 6, as_stored=True)
    ingest(second, data)
    assert np.array_equal(read(data, "half"), half)
    mirrored = pair(first, "mirrored", 2, as_stored=True)
    ingest(first, data)
    assert np.array_equal(read(data, "mirrored"), mirrored), "what lies in the data folder proves it"
    ingest(first, data, mirror=True)
    assert "proof" not in {Path(file).stem for file in samples(data)}
    assert np.array_equal(read(data, "half"), half)
    assert np.array_equal(read(data, "mirrored"), mirrored)


def test_masks_of_tiffs_lie_as_their_images_do(tmp_path: Path) -> None:
    source, data = pairs(tmp_path / "source"), tmp_path / "ws/data"
    expected = {f"o{o}": pair(source, f"o{o}", o, as_stored=True, kind="tif") for o in range(2, 9)}
    assert ingest(source, data).quarantined == ()
    for name, upright in expected.items():
        assert np.array_equal(read(data, name), upright), name
        image = decode(data / "images" / f"{name}.tif")
        assert image.size == upright.shape[::-1]
        assert np.array_equal(np.asarray(image)[:, :, 0], upright * 80)
    assert {sample.file for sample in samples(data).values() if sample.recipe == 2} == {f"images/{name}.tif" for name in expected}


def old_workspace(root: Path) -> tuple[Path, Path]:
    """A source with pictures that were once read wrongly, and its data folder as an ingest of before recipes left it."""
    source, data = pairs(root / "source"), root / "ws/data"
    pair(source, "turned", 3, as_stored=False, kind="tif")
    pair(source, "proof", 6, as_stored=False)
    (source / "images/clear.png").write_bytes(png(16, 0, struct.pack(">4H", 0, 1000, 3000, 9), 4, struct.pack(">H", 1000)))
    (source / "masks/clear.png").write_bytes(png(2, 0, bytes([0b00011011]), 4))
    ingest(source, data)
    found = parse((data / "manifest.csv").read_text())
    (data / "manifest.csv").write_text(render([replace(sample, recipe=1) for sample in found]))
    table = {file: replace(mask, recipe=1) for file, mask in masks(data).items()}
    table["masks/clear.png"] = replace(table["masks/clear.png"], pixels={0: 1, 85: 1, 170: 1, 255: 1})
    (data / "masks.csv").write_text(render_masks(table))
    return source, data


def version(data: Path) -> DataVersion:
    return DataVersion("d" * 32 + ".dir", "r", tuple(samples(data).values()), data, (), masks(data))


def test_the_next_ingest_tells_what_is_read_anew_and_no_other_sample_changes(tmp_path: Path) -> None:
    source, data = old_workspace(tmp_path)
    old, old_masks = samples(data), masks(data)
    report = ingest(source, data)
    assert any(warning.startswith("4 pictures, e.g. ") and "computed again" in warning for warning in report.warnings)
    new, new_masks = samples(data), masks(data)
    assert {file for file in new if new[file] != old[file]} == {"images/turned.tif", "images/clear.png"}
    assert {file for file in new if new[file].pixel_digest != old[file].pixel_digest} == {"images/turned.tif", "images/clear.png"}
    assert {file for file in new_masks if new_masks[file] != old_masks[file]} == {"masks/clear.png", "masks/turned.png"}
    assert new_masks["masks/clear.png"].pixels == {0: 1, 1: 1, 2: 1, 3: 1}
    assert (report.updated, report.unchanged) == (2, len(new) - 2)
    for sample in new.values():
        locate(version(data), sample)


def test_what_an_older_version_of_the_data_reads_otherwise_is_refused_and_never_mixed(tmp_path: Path) -> None:
    _, data = old_workspace(tmp_path)
    found = samples(data)
    for file in ("images/turned.tif", "images/clear.png"):
        with pytest.raises(AskedWrongly, match=rf"image {file} was read wrongly.*headstart data ingest SOURCE"):
            locate(version(data), found[file])
    with pytest.raises(AskedWrongly, match=r"mask masks/clear\.png was read wrongly"):
        locate_mask(version(data), "masks/clear.png")
    locate(version(data), found["images/proof.png"])
    locate_mask(version(data), "masks/proof.png")
    cache = tmp_path / "cache"
    digest = found["images/turned.tif"].digest
    (cache / digest[:2]).mkdir(parents=True)
    (cache / digest[:2] / digest[2:]).write_bytes((data / "images/turned.tif").read_bytes())
    with pytest.raises(AskedWrongly, match=r"turned\.tif was read wrongly"):
        check_turned(replace(version(data), objects=(cache,)))


def test_another_source_brings_the_tiffs_of_before_up_to_date(tmp_path: Path) -> None:
    _, data = old_workspace(tmp_path)
    ingest(pairs(tmp_path / "more", 4), data)
    assert samples(data)["images/turned.tif"].recipe == 2


def test_a_table_without_other_recipes_is_written_as_before_there_were_any() -> None:
    plain = Sample("0" * 32, "images/a.png", "train", {"recipe": "soup"})
    assert render([plain]) == f"digest,file,split,recipe\n{'0' * 32},images/a.png,train,soup\n"
    mended = replace(plain, recipe=2, file="images/b.png", group="g")
    assert parse(render([plain, mended])) == (plain, mended)
    assert RECIPE in render([plain, mended]).splitlines()[0]
    assert plain.pixel_digest == plain.digest
    assert len({plain.pixel_digest, mended.pixel_digest}) == 2
    assert len(bytes.fromhex(mended.pixel_digest)) == 16
    table = {"masks/a.png": Mask("1" * 32, {0: 3}), "masks/b.png": Mask("2" * 32, {0: 3}, 3)}
    assert parse_masks(render_masks(table)) == table
    with pytest.raises(AskedWrongly, match="the recipe '9', which a newer Headstart knows"):
        parse(render([plain, mended]).replace(",2,", ",9,"))


def test_a_lossy_mask_is_refused_at_ingest_and_a_smooth_one_told(tmp_path: Path) -> None:
    data = tmp_path / "ws/data"
    for index in range(24):
        for root, kind in (("lossy", "jpg"), ("smooth", "png")):
            draw(tmp_path / root / "images" / f"{index}.png", index, (40, 40))
            mask = Image.new("L", (40, 40))
            mask.paste(255, (index, 5, 30, 35))
            (tmp_path / root / "masks").mkdir(exist_ok=True)
            small = mask.resize((13, 13), Image.Resampling.BILINEAR).resize((40, 40), Image.Resampling.BILINEAR)
            (mask if kind == "jpg" else small).save(tmp_path / root / "masks" / f"{index}.{kind}")
    words = r"24 of 24 images are bad.*changed. 0.png: its mask: is a picture in JPEG.*save masks as PNG.* .and 23 more.$"
    with pytest.raises(AskedWrongly, match=words) as told:
        ingest(tmp_path / "lossy", data)
    assert str(told.value).count("JPEG") == 1
    assert not data.exists()
    (warning,) = ingest(tmp_path / "smooth", data).warnings
    assert warning.startswith("24 masks, e.g. masks/0.png, look like shades")


def test_a_column_of_pictures_is_told_to_be_taken_for_masks(tmp_path: Path) -> None:
    lines = ["file,kind,before"]
    for index in range(24):
        draw(tmp_path / "source/images" / f"{index}.png", index)
        draw(tmp_path / "source/earlier" / f"{index}.png", index)
        lines.append(f"{index}.png,{'ab'[index % 2]},earlier/{index}.png")
    (tmp_path / "source/labels.csv").write_text("\n".join(lines))
    with pytest.raises(AskedWrongly, match=r"its 'before', a column taken for masks since its cells name images.*3 channels"):
        ingest(tmp_path / "source", tmp_path / "ws/data")


def test_a_name_or_a_class_with_a_line_break_costs_its_images(tmp_path: Path) -> None:
    for index in range(60):
        draw(tmp_path / "source" / "ab"[index % 2] / f"{index}.png", index)
    draw(tmp_path / "source/a" / "x\ny.png", 99)
    draw(tmp_path / "source/c\nd" / "z.png", 98)
    report = ingest(tmp_path / "source", tmp_path / "ws/data")
    assert {reason for _, reason in report.quarantined} == {"its name or label holds a line break"}
    assert (len(report.quarantined), report.num_samples) == (2, 60)
