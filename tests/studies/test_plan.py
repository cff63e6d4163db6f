"""The plan of a study: faults all at once, a file that reads back, and what may be added."""

import re
from dataclasses import replace

import pytest

from understudy.config import DistillConfig, TrainConfig
from understudy.config.methods import DEFAULT_METHODS
from understudy.errors import UserError
from understudy.studies.plan import Plan
from understudy.studies.rows import read_row


def test_all_faults_at_once(tmp_path):
    with pytest.raises(UserError) as stop:
        Plan.of(None, ["data=photos"], rows=["frs", "frs", "frs +"], seeds=[1, 1], steps=0, teachers=[tmp_path / "no"])
    for reason in (
        "expected a method after +",
        '"frs" is given twice',
        "seeds: 1 given twice",
        "steps: expected",
        "no",
    ):
        assert reason in str(stop.value)


@pytest.mark.parametrize("argument", ["run=a", "seed=1", "methods=frs"])
def test_keys_that_a_study_sets(argument, tmp_path):
    with pytest.raises(UserError, match=f"{argument.partition('=')[0]}: a study sets it itself"):
        Plan.of(None, ["data=photos", f"teacher={tmp_path}", argument])


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("seed=0", "seed: a study sets it itself, by --seeds"),
        ("run=elsewhere", "run: a study sets it itself, below its folder"),
        ("teacher=other", "teacher: a study sets it itself, by --teacher or the key teacher"),
        ("data=others", "data.path: all rows of a study are evaluated on the same images"),
        ("data.val=test", "data.val: all rows of a study are evaluated on the same images"),
    ],
)
def test_rows_differ_neither_in_the_keys_of_the_study_nor_in_the_validation_images(word, reason, plan, tmp_path):
    message = re.escape(f'row "frs {word}": {reason}')
    with pytest.raises(UserError, match=message):
        Plan.of(None, ["data=photos"], rows=[f"frs {word}"], teachers=[tmp_path])
    with pytest.raises(UserError, match=message):
        plan.with_more([read_row(f"frs {word}")], [])


def test_they_are_refused_from_python_too(tmp_path):
    with pytest.raises(UserError, match="seed: a study sets it itself, by --seeds"):
        Plan.of({"data": "photos"}, {"seed": 3}, teachers=[tmp_path])


def test_faults_of_the_config_and_of_a_row(tmp_path):
    with pytest.raises(UserError, match=r"dat\b"):
        Plan.of(None, ["dat=photos"], teachers=[tmp_path])
    with pytest.raises(UserError, match=r'row "frs optimizer\.lr=fast": optimizer\.lr'):
        Plan.of(None, ["data=photos"], rows=["frs optimizer.lr=fast"], teachers=[tmp_path])


def test_its_file_reads_back(plan, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(plan.dump())
    assert Plan.load(file) == plan
    typed = Plan.of({"data": "photos", "methods": {"hint": {"share": 0.1}}}, teachers=plan.teachers)
    file.write_text(typed.dump())
    assert Plan.load(file).differences(typed) == []
    aliased = plan.with_more([read_row('aliased: frs "data.aliases={moped: scooter}"')], [])
    file.write_text(aliased.dump())
    assert Plan.load(file) == aliased
    file.write_text("rows: 3\n")
    with pytest.raises(UserError, match="not the plan of a study"):
        Plan.load(file)


def test_configs_of_its_runs(plan, tmp_path):
    none, frs = plan.rows
    plain = plan.config_of(none, 3, plan.teachers[0], tmp_path)
    taught = plan.config_of(frs, 3, plan.teachers[0], tmp_path, epochs=7)
    assert type(plain) is TrainConfig
    assert isinstance(taught, DistillConfig)
    assert (plain.seed, plain.run, taught.schedule.epochs) == (3, tmp_path, 7)
    assert (taught.teacher, taught.methods) == (plan.teachers[0], {"frs": {"ramp_steps": 0}})
    assert (taught.teacher_cache, plain.data, plain.optimizer) == ("auto", taught.data, taught.optimizer)


def test_the_row_of_a_study_for_which_none_is_given(tmp_path):
    """What distill does without a method, or the methods of the config; options of others do not reach the default."""
    plan = Plan.of(None, ["data=photos"], teachers=[tmp_path])
    assert [row.name for row in plan.rows] == ["none", "default"]
    config = plan.config_of(plan.rows[1], 0, tmp_path, tmp_path)
    assert config.methods == DEFAULT_METHODS
    source = {"data": "photos", "methods": {"hint": {"share": 0.1}, "pkd": {}}}
    assert [row.name for row in Plan.of(source, teachers=[tmp_path]).rows] == ["none", "hint + pkd"]
    plan = Plan.of(source, rows=["default", "hint"], teachers=[tmp_path])
    default, hint = (plan.config_of(row, 0, tmp_path, tmp_path).methods for row in plan.rows[1:])
    assert (default, hint) == (DEFAULT_METHODS, {"hint": {"share": 0.1}})


def test_one_teacher_is_given_once(tmp_path):
    with pytest.raises(UserError, match="teacher: give it once, as teacher=PATH, or several as --teacher PATH"):
        Plan.of(None, ["data=photos", f"teacher={tmp_path}"], teachers=[tmp_path])


def test_keys_that_may_change_between_two_calls_do(plan):
    config = {**plan.config, "data": {**plan.config["data"], "workers": 3}, "threads": 5, "batch_size": 64}
    changed = plan.with_free_keys_of(replace(plan, config=config)).config
    assert (changed["data"]["workers"], changed["threads"]) == (3, 5)
    assert changed["batch_size"] == plan.config["batch_size"]


def test_more_rows_and_seeds(plan):
    more = plan.with_more([read_row("pkd")], [1, 5])
    assert [row.name for row in more.rows] == ["none", "frs ramp_steps=0", "pkd"]
    assert more.seeds == (0, 1, 5)
    with pytest.raises(UserError, match='row "frs ramp_steps=0" is frs ramp_steps=0 in this study'):
        plan.with_more([read_row("frs ramp_steps=0: pkd")], [])


def test_differences_are_named(plan):
    assert plan.differences(plan) == []
    config = {**plan.config, "batch_size": 3}
    found = plan.differences(replace(plan, config=config, steps=9))
    assert found == ["batch_size: 2 in the study, 3 now", "steps: none in the study, 9 now"]
