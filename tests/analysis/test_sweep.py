"""Experiments of several runs: the regions of FRS and a sweep over teachers, trained once, then reused."""

import json
import shutil

import pytest
import yaml
from arguments import arguments_of
from run_folders import STUDENT, TEACHER, make_run
from training_runs import at_step, ctrl_c

from understudy.analysis import regions as regions_module
from understudy.analysis import teachers as teachers_module
from understudy.analysis.regions import REGIONS, analyse_regions
from understudy.analysis.sweep import run_all
from understudy.analysis.teachers import compare_teachers, train_with_teachers
from understudy.cli import main
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.errors import UserError


@pytest.fixture
def keys(tiny, trained) -> list[str]:
    """Keys of the smallest distilled run, as arguments."""
    values = tiny | {"schedule.epochs": 1, "teacher": trained}
    return arguments_of(values)


@pytest.fixture
def no_training(monkeypatch):
    """Replaces training by the folder of a finished run, with an AP that grows from run to run."""
    made = []

    def run_all(configs, say):
        for config in configs.values():
            made.append(config)
            if not config.run.exists():
                make_run(config.run, 0.2 + len(made) / 100)
                (config.run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return [config.run for config in configs.values()]

    monkeypatch.setattr(regions_module, "run_all", run_all)
    monkeypatch.setattr(teachers_module, "run_all", run_all)
    return made


def test_each_region_is_a_run_that_differs_in_the_mask_alone(tmp_path, keys, no_training):
    result = analyse_regions(tmp_path, overrides=keys)
    assert [row.region for row in result.rows] == list(REGIONS) == ["plain", "gt", "tp", "tp+fp", "tp+tn", "soft"]
    plain, *distilled = no_training
    assert type(plain) is TrainConfig
    assert [config.methods["frs"]["region"] for config in distilled] == ["tp_fn", "tp", "tp_fp", "tp_tn", "richness"]
    assert {config.methods["frs"]["class_weight"] for config in distilled} == {0}
    same = [config.model_dump(exclude={"run", "methods"}) for config in distilled]
    assert all(other == same[0] for other in same)
    assert plain.model_dump(exclude={"run"}) == {key: same[0][key] for key in plain.model_dump(exclude={"run"})}
    assert result.rows[0].gain is None
    assert result.rows[1].gain == pytest.approx(0.01)
    assert "feature term only" in result.notes[0]
    assert json.loads(json.dumps(result.to_dict()))["rows"][5]["region"] == "soft"
    bars = result.figures()["regions"].figure.axes[0]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["gt", "tp", "tp+fp", "tp+tn", "soft"]


def test_options_of_the_config_are_kept(tmp_path, keys, no_training):
    more = ["methods.frs.class_weight=0.05", "methods.frs.threshold=0.3"]
    result = analyse_regions(tmp_path, overrides=[*keys, *more], regions=["soft", "tp"])
    assert [(c.methods["frs"]["region"], c.methods["frs"]["threshold"]) for c in no_training] == [
        ("tp", 0.3),
        ("richness", None),
    ]
    assert {config.methods["frs"]["class_weight"] for config in no_training} == {0.05}
    assert "With the class term" in result.notes[0]
    assert result.rows[0].gain is None


def test_wrong_regions_and_keys_are_refused(tmp_path, keys):
    with pytest.raises(UserError, match=r"--region: expected plain, gt.*got sofd, did you mean soft\?"):
        analyse_regions(tmp_path, overrides=keys, regions=["sofd"])
    with pytest.raises(UserError, match=r"(?s)run: is set by --output.*methods.frs.region: is set by --region"):
        analyse_regions(tmp_path, overrides=[*keys, "run=a", "methods.frs.region=tp"])
    with pytest.raises(UserError, match="add --method frs"):
        analyse_regions(tmp_path, overrides=keys, methods=["pkd"])
    with pytest.raises(UserError, match="teacher: missing"):
        analyse_regions(tmp_path, overrides=[key for key in keys if not key.startswith("teacher")])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_experiment_goes_on_and_finished_runs_are_reused(tmp_path, keys):
    """Really trained: two regions of one epoch, interrupted in the second."""
    said = []
    arguments = {"overrides": keys, "regions": ["plain", "tp"], "say": said.append}
    analyse_regions(tmp_path, overrides=keys, regions=["plain"], say=said.append)
    written = (tmp_path / "plain" / "result.json").stat().st_mtime_ns
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt, match="resume"):
        analyse_regions(tmp_path, **arguments)
    assert not (tmp_path / "tp" / "result.json").exists()
    result = analyse_regions(tmp_path, **arguments)
    assert (tmp_path / "plain" / "result.json").stat().st_mtime_ns == written
    assert [row.region for row in result.rows] == ["plain", "tp"]
    assert said[-2:] == [f"1/2  plain: finished before, {tmp_path / 'plain'}", f"2/2  tp: finished, {tmp_path / 'tp'}"]
    config = yaml.safe_load((tmp_path / "tp" / "config.yaml").read_text())
    assert config["methods"]["frs"]["region"] == "tp"
    with pytest.raises(UserError, match=r"(?s)hold other runs.*tp: seed is 0, not 7"):
        analyse_regions(tmp_path, overrides=[*keys, "seed=7"], regions=["tp"])


def test_all_folders_with_other_runs_are_named_before_training(tmp_path, keys):
    configs = {}
    for name in ("a", "b"):
        make_run(tmp_path / name, 0.2)
        configs[name] = load_config(DistillConfig, None, [*keys, f"run={tmp_path / name}"])
    with pytest.raises(UserError, match=r"(?s)a: .*b: .*--output FOLDER"):
        run_all(configs, print)


def test_students_are_drawn_over_their_teachers(tmp_path):
    teachers = [make_run(tmp_path / f"t{n}", 0.5 - n / 10, detector=TEACHER) for n in range(3)]
    students = [make_run(tmp_path / f"s{n}", 0.3 + n / 100, teacher=teacher) for n, teacher in enumerate(teachers)]
    plain = make_run(tmp_path / "plain", 0.25)
    result = compare_teachers([*students, plain])
    assert [(row.name, row.teacher_AP, row.student_AP) for row in result.rows] == [
        ("t2", 0.3, 0.32),
        ("t1", 0.4, 0.31),
        ("t0", 0.5, 0.3),
    ]
    assert result.plain == 0.25
    assert result.rows[0].detector == TEACHER["name"]
    axes = result.figures()["teachers"].figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["t2", "t1", "t0"]
    assert json.loads(json.dumps(result.to_dict()))["plain"] == 0.25
    assert not any("Fewer" in note for note in result.notes)


def test_other_budgets_and_missing_teachers_are_told(tmp_path):
    teacher = make_run(tmp_path / "t", 0.5, detector=TEACHER)
    one = make_run(tmp_path / "one", 0.3, teacher=teacher)
    other = make_run(tmp_path / "other", 0.3, teacher=teacher, batch_size=4, detector=STUDENT | {"neck_channels": 16})
    notes = " ".join(compare_teachers([one, other]).notes)
    assert "other and one differ in batch size, detector" in notes
    assert "Fewer than three students" in notes
    shutil.rmtree(teacher)
    with pytest.raises(UserError, match="is not there"):
        compare_teachers([one])
    with pytest.raises(UserError, match="None of these is a distilled run"):
        compare_teachers([make_run(tmp_path / "plain", 0.2)])


def test_a_teacher_without_a_run_is_evaluated_on_the_data_of_its_students(tmp_path, distilled, trained):
    moved = tmp_path / "teacher.ckpt"
    shutil.copy(trained / "best.ckpt", moved)
    student = shutil.copytree(distilled, tmp_path / "student")
    config = yaml.safe_load((student / "config.yaml").read_text())
    (student / "config.yaml").write_text(yaml.safe_dump(config | {"teacher": str(moved)}))
    (row,) = compare_teachers([student]).rows
    assert (row.name, row.detector) == ("teacher", "fcos_mobilenet_v2")
    assert row.teacher_AP == pytest.approx(json.loads((trained / "result.json").read_text())["coco"]["AP"], abs=1e-6)


def test_a_sweep_trains_the_same_student_with_each_teacher(tmp_path, keys, no_training, trained):
    teachers = [shutil.copytree(trained, tmp_path / name) for name in ("small", "big")]
    own = [key for key in keys if not key.startswith("teacher")]
    result = train_with_teachers(teachers, tmp_path / "out", overrides=own)
    plain, *distilled = no_training
    assert plain.run == tmp_path / "out" / "plain"
    assert [(config.teacher, config.run.name) for config in distilled] == [(t, t.name) for t in teachers]
    assert result.plain == pytest.approx(0.21)
    assert {row.name for row in result.rows} == {"small", "big"}
    with pytest.raises(UserError, match="names are not unique: small"):
        train_with_teachers([teachers[0], teachers[0]], tmp_path / "out", overrides=own)
    with pytest.raises(UserError, match="no teacher can be named plain"):
        train_with_teachers([trained.with_name("plain")], tmp_path / "out", overrides=own)
    with pytest.raises(UserError, match="teacher: is set by the teachers"):
        train_with_teachers(teachers, tmp_path / "out", overrides=keys)


def test_the_command_reads_runs_or_trains_with_a_config(tmp_path, capsys, no_training, keys, trained):
    teacher = make_run(tmp_path / "t", 0.5, detector=TEACHER)
    student = make_run(tmp_path / "s", 0.3, teacher=teacher)
    with pytest.raises(SystemExit) as end:
        main(["analyse", "teachers", str(student)])
    assert (end.value.code, "Students by teacher" in capsys.readouterr().out) == (0, True)
    own = [key for key in keys if not key.startswith("teacher")]
    with pytest.raises(SystemExit) as end:
        main(["analyse", "teachers", str(trained), *own])
    assert end.value.code == 2
    assert "--output FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["analyse", "regions", "-o", str(tmp_path / "out"), "--region", "soft", "--json", *keys])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["region"] == "soft"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "soft",
        "regions.html",
        "regions.json",
        "regions.png",
        "regions.svg",
    }
