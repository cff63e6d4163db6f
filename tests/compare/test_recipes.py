"""The note on the recipe that a distilled run follows, or from which it differs."""

from dataclasses import replace

import pytest
from run_folders import TEACHER, make_row, make_run

from understudy.compare.recipes import recipe_notes
from understudy.compare.table import summarise
from understudy.config import DistillConfig, load_config
from understudy.detectors.families import FAMILIES, Family


def note_on(row) -> str | None:
    notes = list(recipe_notes(row))
    assert len(notes) < 2
    return notes[0] if notes else None


def of_recipe(name: str, **changes) -> dict:
    config = load_config(DistillConfig, {"recipe": name, "data": "coco", "run": "r", "teacher": "t", **changes})
    return config.model_dump(exclude={"run", "teacher"}) | {"data": config.data}


def row_of(values: dict):
    row = make_row("frs", "distilled", 0.3)
    config = DistillConfig(**{**values, "run": "r", "teacher": "t"})
    return replace(row, runs=(replace(row.runs[0], config=config),))


def test_an_unchanged_recipe_is_recognised_also_without_its_name():
    values = of_recipe("frs-gfl-r50")
    assert note_on(row_of(values)) == "frs: the settings are those of the recipe frs-gfl-r50."
    assert note_on(row_of(values | {"recipe": None, "batch_size": 2, "devices": 8})) == note_on(row_of(values))


def test_differences_from_the_named_recipe():
    values = of_recipe("fgd-retinanet-r50", inherit=False, schedule={"epochs": 12}, optimizer={"clip_norm": None})
    note = note_on(row_of(values))
    differences = "inheritance (none, not yes), gradient clip (none, not 35.0), epochs (12, not 24)"
    assert note == f"frs differs from the recipe fgd-retinanet-r50 in {differences}."


def test_the_closest_recipe_of_a_run_of_its_own():
    row = make_row("frs", "distilled", 0.3, methods={"frs": {"feature_weight": 1.0}})
    note = note_on(row)
    assert note.startswith("frs differs from the closest recipe, frs-retinanet-r50 in detector, channels, width, ")
    assert note.endswith(" more.")
    assert len(note) <= 110


FRS = {"feature_weight": 0.005, "class_weight": 0.02, "ramp_steps": 500}


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"pseudo_labels": 0.5}, "pseudo-labels (0.5, not none)"),
        ({"devices": "auto"}, "images per step (16 a device, not 16)"),
        ({"data": {"path": "coco", "unlabelled": "more"}}, "unlabelled images"),
        ({"data": {"path": "coco", "limit": 1000}}, "number of training images"),
        ({"methods": {"frs": FRS | {"standardise": "level"}}}, "options of the methods"),
        ({"methods": {"frs": FRS, "hint": {}}}, "methods (frs + hint, not frs)"),
        ({"methods": {"pkd": {}}}, "methods (pkd, not frs)"),
        ({"methods": {"frs": {}}, "balance": 0.8}, "balance, options of the methods"),
        ({"methods": {"frs": FRS | {"box_share": 0.2}}, "balance": 0.5}, "balance, options of the methods"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_a_change_of_one_setting_is_named(changes, differences):
    note = note_on(row_of(of_recipe("frs-retinanet-r50", **changes)))
    assert note == f"frs differs from the recipe frs-retinanet-r50 in {differences}."


def test_default_weights_are_those_of_the_family():
    note = note_on(row_of(of_recipe("frs-retinanet-r50", methods={"frs": {}}, detector={"name": "fcos_resnet50"})))
    assert note.endswith("in detector (fcos_resnet50, not retinanet_resnet50), options of the methods.")


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": {"frs": {}}},  # its default weights are the published ones
        {"balance": 0.8, "balance_end": 0.5},  # without effect, since all weights are given
        {"data": {"path": "elsewhere", "workers": 7, "max_pixels": 10**9, "aliases": {"moped": "motorcycle"}}},
        {"seed": 3, "accelerator": "cpu", "log_every": 50},
    ],
)
def test_what_changes_nothing_of_a_recipe_is_no_difference(changes):
    note = note_on(row_of(of_recipe("frs-retinanet-r50", **changes)))
    assert note == "frs: the settings are those of the recipe frs-retinanet-r50."


@pytest.mark.parametrize(("weights", "same"), [({"feature": 0.005, "class": 0.02}, True), ({"feature": 1.0}, False)])
def test_default_weights_of_the_family_of_a_plugin(weights, same, monkeypatch):
    own = Family(name="mine", title="Mine", networks="mine", openers="mine", weights={"frs": weights})
    monkeypatch.setitem(FAMILIES, "mine", own)
    note = note_on(row_of(of_recipe("frs-retinanet-r50", methods={"frs": {}}, detector={"name": "mine_resnet50"})))
    assert "in detector (mine_resnet50, not retinanet_resnet50)" in note
    assert ("options of the methods" in note) == (not same)


@pytest.mark.parametrize("options", [{"option_of_the_future": 1}, FRS | {"option_of_the_future": 1}])
def test_options_of_another_version_are_a_difference(options):
    values = of_recipe("frs-retinanet-r50") | {"methods": {"frs": options}}
    assert note_on(row_of(values)).endswith("options of the methods.")


@pytest.mark.parametrize("methods", [{"soft_labels": {}}, {"frs": {}, "hint": {}}])
def test_no_note_where_nothing_is_published(methods):
    assert note_on(make_row("own", "distilled", 0.3, methods=methods)) is None
    assert note_on(make_row("plain", "plain", 0.3)) is None


def test_the_table_has_one_note_and_a_recipe_of_another_version_is_no_error(tmp_path):
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    frs = make_run(tmp_path / "frs", 0.4, teacher=teacher, recipe="frs-of-the-future")
    table = summarise([teacher, frs], measure_speed=False)
    (note,) = [note for note in table.notes if " recipe, " in note]
    assert " in detector, teacher, channels, width and " in note
