"""The recipes' files: complete, readable, in the wheel, and the start of a config."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.errors import UserError
from understudy.listing.recipes import explain, teacher_command
from understudy.methods import METHODS
from understudy.methods.loading import method_options
from understudy.recipes import FOLDER, papers, read_recipe, recipe_names, step_seconds, teachers

YOURS = {"data": "photos", "run": "runs/a"}
DISTILLED = [name for name in recipe_names() if read_recipe(name).methods]


def test_every_recipe_makes_a_config_and_refers_to_what_exists():
    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.paper in papers(), name
        plain = load_config(TrainConfig, YOURS | {"recipe": name})
        assert plain.recipe == name
        assert bool(recipe.methods) == (recipe.teacher is not None), name
        if recipe.teacher:
            assert recipe.teacher in teachers(), name
            config = load_config(DistillConfig, YOURS | {"recipe": name, "teacher": "t.ckpt"})
            assert config.methods == recipe.methods
            assert config.detector == plain.detector


def test_every_method_and_option_exists_and_every_weight_is_stated():
    for name in DISTILLED:
        for method, options in read_recipe(name).methods.items():
            assert method in METHODS, name
            method_options(method).model_validate(options)
            assert {f"{term}_weight" for term in METHODS[method].terms} <= options.keys(), f"{name}: {method}"
            if "images_per_process" in METHODS[method].Options.model_fields:  # weights belong to it
                assert "images_per_process" in options, f"{name}: {method}"


def test_every_method_with_a_published_detector_recipe_has_one():
    covered = {method for name in DISTILLED for method in read_recipe(name).methods}
    assert set(METHODS) - covered == {"soft_labels", "second_stage", "score_l2"}


@pytest.mark.parametrize("table", ["FCOS table", "RetinaNet table", "Ablation: FCOS R50"])
def test_rows_of_a_table_of_dist2_differ_in_the_methods_alone(table):
    rows = [recipe for recipe in map(read_recipe, recipe_names()) if (recipe.paper, recipe.table) == ("dist2", table)]
    trained = [{key: value for key, value in row.config.items() if key != "methods"} for row in rows]
    assert len(rows) > 5
    assert all(settings == trained[0] for settings in trained)
    assert trained[0]["optimizer"]["clip_norm"] == 35.0


def test_published_gains_and_orders():
    for name in DISTILLED:
        printed = read_recipe(name).published
        if printed.plain and printed.distilled:
            assert 0 < printed.distilled - printed.plain < 7, name
        if printed.plain and printed.teacher:
            assert printed.teacher > printed.plain, name


def test_commands_name_what_they_make():
    for key, teacher in teachers().items():
        command = teacher_command(key, teacher)
        assert (f"-o {key}.ckpt" if teacher.url else f"run=runs/{key}") in command
        assert "'" not in command, "a quoted value could be broken over two lines"
        if teacher.training:
            words = command.split()[2:]
            load_config(TrainConfig, None, [f"recipe={words[1]}", *words[2:]])
    text = explain("rm-pfi-retinanet-r50-voc")
    assert "teacher=runs/retinanet_r101_voc" in text
    assert "teacher: runs/retinanet_r101_voc" in text


def test_inconsistencies_of_a_paper_are_printed_once_and_are_not_those_of_its_recipes():
    assert {key for key, paper in papers().items() if paper.inconsistencies} == {"frs", "dist2", "rm_pfi"}
    for name in recipe_names():
        recipe = read_recipe(name)
        assert not set(recipe.inconsistencies) & set(papers()[recipe.paper].inconsistencies), name
    words = " ".join(explain("frs-table4-tp").split())
    for each in papers()["frs"].inconsistencies:
        assert words.count(each) == 1
    assert "Inconsistencies of the paper" not in explain("ld-gfl-r50")


def expected_of(name: str) -> str:
    header = explain(name).partition("Commands:")[0]
    return " ".join(header[header.index("Expected:") :].split())


def test_the_expected_time_follows_from_the_measured_steps(monkeypatch):
    measured = {"frs": {"1 H100": 0.36}, "rank_mimicking + pfi": {"1 H100": 0.37}}
    monkeypatch.setattr(
        "understudy.listing.recipes.step_seconds", lambda: {"retinanet_resnet50 from retinanet_resnet101": measured}
    )
    recipe = read_recipe("frs-retinanet-r50")
    assert recipe.steps == 24 * 7329
    assert expected_of(recipe.name).startswith(
        f"Expected: {recipe.steps * 0.36 / 3600:.1f} hours on 1 H100 (0.360 s for"
    )
    assert "0.370 s for 16 images" in expected_of("rm-pfi-retinanet-r50")
    assert "0.360 s for 16 images" in expected_of("crosskd-retinanet-r50"), "the first where its methods were not timed"
    assert expected_of("frs-gfl-r50") == "Expected: not measured (no step of gfl_resnet50 from gfl_resnet101 was timed)"
    at_600 = "Expected: not measured (steps were timed at a shorter side of 800 pixels, not 600)"
    assert expected_of("rm-pfi-retinanet-r50-voc") == at_600


def test_the_expected_time_of_dist2_counts_32_images_and_its_own_strategies():
    recipe = read_recipe("dist2-fcos-mnv2-all2all")
    hours = recipe.steps * 2 * 0.627 / 3600
    assert expected_of(recipe.name).startswith(
        f"Expected: {hours:.1f} hours on one H100, float32 (0.627 s for 16 images"
    )
    assert "measured with dist2 All2All from fcos_resnext101_32x8d, without" in expected_of(recipe.name)
    assert "measured with dist2 N2N from" in expected_of("dist2-fcos-mnv2-di-n2n")
    assert "(0.106 s for 16 images); measured with no method, without" in expected_of("dist2-fcos-mnv2-plain")


def test_every_recipe_states_its_expected_time_or_that_it_was_not_measured():
    for name in recipe_names():
        assert expected_of(name).split(" (")[0].endswith(("not measured", "float32")), name


def test_shared_files_are_used():
    files = [*FOLDER.glob("*.yaml"), *(FOLDER / "base").glob("*.yaml")]
    extended = {yaml.safe_load(file.read_text()).get("extends") for file in files}
    assert {file.stem for file in (FOLDER / "base").glob("*.yaml")} == extended - {None}
    assert {read_recipe(name).teacher for name in DISTILLED} == set(teachers())
    assert {read_recipe(name).paper for name in recipe_names()} == set(papers())
    of_recipes = {(recipe.timed_pair, recipe.timed_methods) for recipe in map(read_recipe, recipe_names())}
    assert {(pair, methods) for pair, measured in step_seconds().items() for methods in measured} <= of_recipes


def test_the_order_is_recipe_file_keys(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: frs-retinanet-r50\ndata: photos\nschedule: {epochs: 6}\nbatch_size: 8\n")
    config = load_config(
        DistillConfig, file, ["run=runs/a", "teacher=t.ckpt", "batch_size=4", "methods.frs.threshold=0.1"]
    )
    assert (config.schedule.name, config.schedule.epochs, config.batch_size) == ("2x", 6, 4)
    assert config.methods["frs"] == {"feature_weight": 0.005, "class_weight": 0.02, "ramp_steps": 500, "threshold": 0.1}
    other = load_config(DistillConfig, file, ["run=runs/a", "teacher=t.ckpt", "recipe=frs-gfl-r50"])
    assert (other.detector.name, other.recipe, other.schedule.epochs) == ("gfl_resnet50", "frs-gfl-r50", 6)
    assert load_config(DistillConfig, other) == other
    assert load_config(TrainConfig, file, {"run": "runs/a", "recipe": None}).schedule.name == "cosine"


def test_methods_replace_those_of_the_recipe():
    yours = YOURS | {"recipe": "frs-retinanet-r50", "teacher": "t.ckpt"}
    assert load_config(DistillConfig, yours | {"methods": "pkd"}).methods == {"pkd": {}}
    chosen = load_config(DistillConfig, yours, methods=["frs", "pkd"]).methods
    assert chosen == {"frs": read_recipe("frs-retinanet-r50").methods["frs"], "pkd": {}}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("frs-retina-r50", "there is no recipe frs-retina-r50; did you mean frs-retinanet-r50?"),
        ("zzz", "there is no recipe zzz; `understudy recipes` lists them"),
        ("dist2-fcos-r50-plain", "is a plain student, without methods; use `understudy train`"),
    ],
)
def test_a_wrong_recipe_is_one_fault_among_the_others(name, said):
    with pytest.raises(UserError) as error:
        load_config(DistillConfig, {"data": "photos"}, [f"recipe={name}"])
    assert said in str(error.value)
    assert "teacher: missing" in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which builds the wheel, is not installed")
def test_the_wheel_contains_the_recipes(tmp_path):
    command = ["uv", "build", "--wheel", "--offline", "--out-dir", str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {file.relative_to(FOLDER.parents[1]).as_posix() for file in FOLDER.rglob("*.yaml")} <= packed
