"""The runs of a study: their budget in steps or time, several teachers, and which are trained side by side."""

from dataclasses import replace
from pathlib import Path

import pytest

from understudy.config import LEFT_OPEN, DistillConfig, TrainConfig, open_keys
from understudy.studies.folder import StudyFolder
from understudy.studies.plan import Plan
from understudy.studies.rows import LONGER
from understudy.studies.running import Study
from understudy.studies.timing import StepCost

COSTS = {
    "none": {"seconds": 0.5, "steps": 10, "cached": False},
    "frs": {"seconds": 0.75, "steps": 10, "cached": True},
    "dist2": {"seconds": 1.0, "steps": 10, "cached": False},
}


@pytest.fixture
def study_of(tiny, tmp_path):
    """Makes studies of three rows whose steps were measured; nothing is trained."""

    def make(teachers: int = 1, **options) -> Study:
        folders = [tmp_path / f"teacher{number}" for number in range(teachers)]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        plan = Plan.of(tiny, {}, rows=["frs", "dist2"], seeds=[4], teachers=folders, **options)
        study = Study(StudyFolder(tmp_path / "study"), plan)
        study.facts = {"costs": dict(COSTS), "longer": 2.0}
        return study

    return make


def epochs(study: Study) -> dict[str, int]:
    return {task.row: task.config.schedule.epochs for task in study.tasks()}


def test_epochs_of_the_config(study_of):
    assert epochs(study_of()) == {"none": 2, LONGER: 4, "frs": 2, "dist2": 2}
    assert epochs(study_of(longer=False)) == {"none": 2, "frs": 2, "dist2": 2}
    as_long = study_of()
    as_long.facts["longer"] = 1.2
    assert epochs(as_long) == {"none": 2, "frs": 2, "dist2": 2}  # it would be none once more


def test_a_budget_in_steps(study_of):
    assert epochs(study_of(steps=52)) == {"none": 5, LONGER: 10, "frs": 5, "dist2": 5}
    assert epochs(study_of(steps=3))["frs"] == 1


def test_a_budget_in_time_gives_each_row_the_epochs_that_fit(study_of):
    assert epochs(study_of(minutes=1)) == {"none": 12, "frs": 8, "dist2": 6}
    assert epochs(study_of(minutes=0.01))["dist2"] == 1


def test_a_row_may_set_its_epochs(study_of):
    study = study_of()
    none, frs, _ = study.plan.rows
    own = replace(frs, overrides=("schedule.epochs=7",))
    study.plan = replace(study.plan, rows=(none, own))
    assert epochs(study)["frs"] == 7


def test_the_longer_row_takes_as_long_as_the_slowest_distilled_run(study_of):
    """Seconds, steps and epochs count; a wider plain student does not."""
    study = study_of()
    none, frs, dist2 = study.plan.rows
    assert study._longer() == 2.0
    study.facts["costs"]["frs"] = {"seconds": 0.75, "steps": 30, "cached": True}
    assert study._longer() == 4.5
    study.plan = replace(study.plan, rows=(none, replace(frs, overrides=("schedule.epochs=4",))))
    assert study._longer() == 9.0
    study.plan = replace(study.plan, rows=(none, replace(dist2, methods=())))
    assert study._longer() == 1.0


def test_passes_of_the_teacher_that_a_cache_does_not_save_count_as_time(tiny, trained, tmp_path, monkeypatch):
    costs = {"none": StepCost(1.0, 1.0, 0), "frs": StepCost(1.2, 2.0, 0)}
    monkeypatch.setattr("understudy.studies.running.step_costs", lambda runs: costs)
    (tmp_path / "study").mkdir()
    plan = Plan.of(tiny, {"schedule.epochs": 8, "batch_size": 4}, rows=["frs"], seeds=[4], teachers=[trained])
    study = Study(StudyFolder(tmp_path / "study"), plan)
    study.prepare(accept_changes=False)
    # In 8 epochs, each image is computed as it is and mirrored: all in the first one, then 1 of 7, in passes of 4.
    seconds = 1.2 + (1 / 8 + 7 / 8 * (1 - (6 / 7) ** 4)) * 0.8
    assert study.facts["costs"]["frs"]["seconds"] == pytest.approx(seconds)
    assert study.facts["longer"] == pytest.approx(seconds)


def test_a_budget_in_time_decides_how_often_an_image_is_seen(tiny, trained, tmp_path, monkeypatch):
    costs = {"none": StepCost(1.0, 1.0, 0), "frs": StepCost(1.0, 2.0, 0)}
    monkeypatch.setattr("understudy.studies.running.step_costs", lambda runs: costs)
    keys = {key: value for key, value in tiny.items() if key not in LEFT_OPEN} | {"schedule": "cosine"}
    (tmp_path / "study").mkdir()
    plan = Plan.of(keys, {"batch_size": 2}, rows=["frs"], seeds=[4], teachers=[trained], minutes=3)
    study = Study(StudyFolder(tmp_path / "study"), plan)
    study.prepare(accept_changes=False)
    assert study.facts["chosen"]["data.variants"] == 9  # a quarter of the epochs, each of 4 steps
    assert epochs(study) == {"none": 45, "frs": 36}


def test_a_row_with_other_data_has_fingerprints_of_its_own(tiny, trained, tmp_path):
    (tmp_path / "study").mkdir()
    plan = Plan.of(tiny, {}, rows=["frs", "half: frs data.limit=4"], seeds=[4], teachers=[trained])
    study = Study(StudyFolder(tmp_path / "study"), plan)
    study.prepare(accept_changes=False)
    own = [what for what in study.facts["made_with"] if what.endswith(', row "half"')]
    assert any(what.startswith("annotations of data.train") for what in own)
    study.plan = replace(plan, rows=plan.rows[:2])
    study.prepare(accept_changes=False)  # nothing has changed for the others


def test_each_teacher_has_its_rows(study_of):
    study = study_of(teachers=2, longer=False)
    study.facts["costs"] |= {f"{row} (teacher{n})": COSTS[row] for row in ("frs", "dist2") for n in (0, 1)}
    tasks = study.tasks()
    assert [task.row for task in tasks] == [
        "none",
        "frs (teacher0)",
        "frs (teacher1)",
        "dist2 (teacher0)",
        "dist2 (teacher1)",
    ]
    assert tasks[2].name == "frs-teacher1-seed4"
    assert isinstance(tasks[2].config, DistillConfig)
    assert tasks[2].config.teacher == Path(study.plan.teachers[1])


def test_side_by_side_are_those_that_share_schedule_and_cache(study_of):
    study = study_of()
    groups = study._groups(study.tasks())
    assert [[task.row for task in group] for group in groups] == [["none", "frs"], [LONGER], ["dist2"]]


@pytest.mark.parametrize(("steps", "colour"), [(None, 0.5), (24, 0.5), (23, 0.0)])
def test_the_steps_of_a_study_decide_how_often_an_image_is_seen(steps, colour, tiny, trained, tmp_path):
    keys = {key: value for key, value in tiny.items() if key not in LEFT_OPEN} | {"schedule": "cosine"}
    folder = StudyFolder(tmp_path / "study")
    folder.path.mkdir()
    study = Study(folder, Plan.of(keys, {}, rows=["frs"], seeds=[4], teachers=[trained], steps=steps))
    study.prepare(accept_changes=False)
    assert (study.facts["chosen"]["batch_size"], study.facts["chosen"]["data.colour"]) == (8, colour)


def test_what_is_left_open_is_chosen_once_for_all_rows(tiny, trained, tmp_path, monkeypatch):
    """By the last row, whose teacher decides the size of the images; another machine goes on with it."""
    monkeypatch.setattr("understudy.training.defaults.MOST_EPOCHS", 3)
    keys = {key: value for key, value in tiny.items() if key not in LEFT_OPEN} | {"schedule": "cosine"}
    plan = Plan.of(keys, {}, rows=["frs", "size: frs data.shorter_side=96"], seeds=[4], teachers=[trained])
    folder = StudyFolder(tmp_path / "study")
    folder.path.mkdir()
    study = Study(folder, plan)
    study.prepare(accept_changes=False)
    chosen = {"data.shorter_side": [96], "data.longer_side": 160, "data.workers": 0, "data.group_by_aspect": False}
    assert study.facts["chosen"] == chosen | {
        "batch_size": 8,
        "schedule.epochs": 3,
        "data.colour": 0.0,
        "data.scale": 1.0,
        "data.unlabelled_batch": None,
        "data.variants": None,
        "detector.anchor_scale": None,
        "teacher_scale": 1,
    }

    study.facts["longer"] = 1.4  # two rows of one method take the same time, more or less

    def configs(study: Study) -> dict[str, TrainConfig]:
        return {task.row: task.config for task in study.tasks()}

    found = configs(study)
    assert {config.batch_size for config in found.values()} == {8}
    assert found["none"].data == found["frs"].data
    assert found[LONGER].schedule.epochs == 4
    assert set(open_keys(found["frs"])) == {
        "class_balance",  # by the data and the detector
        "evaluate_every",  # by the epochs of a run
        "detector.backbone_weights",
        "detector.head_norm",
        "detector.norm",
    }
    monkeypatch.setattr("understudy.training.defaults.IMAGES_PER_STEP", 2)
    again = Study(folder, Plan.load(folder.plan))
    again.prepare(accept_changes=False)
    assert configs(again)["frs"] == found["frs"]
    assert plan.differences(Plan.load(folder.plan)) == []


@pytest.fixture
def anchors_of(tiny, trained, tmp_path, monkeypatch):
    """Returns the anchors of the runs of a RetinaNet's study, whose teacher has anchors that fit clearly worse."""
    build = {"name": "retinanet_resnet18", "anchor_scale": 9.0}
    monkeypatch.setattr("understudy.training.defaults.read_metadata", lambda _: {"build": build})
    keys = {key: value for key, value in tiny.items() if key != "detector.anchor_scale"}
    keys["detector.name"] = "retinanet_mobilenet_v2"
    folder = StudyFolder(tmp_path / "study")
    folder.path.mkdir()

    def prepare(*rows: str, facts: dict | None = None) -> dict[str, float | str | None]:
        study = Study(folder, Plan.of(keys, {}, rows=rows, seeds=[4], teachers=[trained]))
        study.facts |= facts or {}
        study.prepare(accept_changes=False)
        study.facts["longer"] = 1.4
        return {task.row: task.config.detector.anchor_scale for task in study.tasks() if task.row != LONGER}

    return prepare


def test_all_rows_have_the_same_anchors(anchors_of):
    """The default methods alone do without those of the teacher; a study keeps what it began with."""
    assert anchors_of("default") == {"none": 2.0, "default": 2.0}
    assert anchors_of("default", "frs scores=cell") == {"none": 2.0, "default": 2.0, "frs scores=cell": 2.0}


def test_a_row_that_needs_its_teachers_anchors_decides(anchors_of):
    rows = ["frs scores=cell", "default", "fcos: none detector.name=fcos_mobilenet_v2", "i: default inherit=true"]
    expected = {"none": 9.0, "frs scores=cell": 9.0, "default": 9.0, "fcos": "auto", "i": "auto"}
    assert anchors_of(*rows) == expected


def test_a_study_of_an_earlier_version_keeps_the_anchors_of_each_row(anchors_of):
    chosen = {"chosen": {"batch_size": 2}}
    assert anchors_of("default", facts=chosen) == {"none": "auto", "default": "auto"}


def test_a_budget_in_time_keeps_the_anchors(tiny, trained, tmp_path, monkeypatch):
    """They are kept if nothing else is left open, too."""
    monkeypatch.setattr("understudy.training.defaults.read_metadata", lambda _: {"build": {"name": "x"}})
    given = {"data.variants": None, "data.unlabelled_batch": None, "data.group_by_aspect": False, "teacher_scale": 1}
    keys = {key: value for key, value in tiny.items() if key != "detector.anchor_scale"} | given
    keys["detector.name"] = "retinanet_mobilenet_v2"
    folder = StudyFolder(tmp_path / "study")
    folder.path.mkdir()
    study = Study(folder, Plan.of(keys, {}, rows=["default"], seeds=[4], teachers=[trained]))
    study._choose()
    before = study.facts["chosen"]
    assert before["detector.anchor_scale"] == 2.0
    assert not study._choose(epochs=5)
    assert study.facts["chosen"] == before
