"""A study end to end: interrupted, extended, with failures, and what is refused."""

import errno
import gc
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import assert_same, at_step, crash, ctrl_c

from understudy.cli import main
from understudy.errors import RunError, UserError
from understudy.reading import read_rows
from understudy.studies.folder import StudyFolder
from understudy.studies.jobs import in_processes
from understudy.studies.rows import read_row
from understudy.studies.running import run_study
from understudy.training.engine import Engine
from understudy.training.folder import lock
from understudy.training.teacher_cache import Store

RUNS = ["frs_ramp_steps=0-seed0", "frs_ramp_steps=0-seed1", "none-seed0", "none-seed1"]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_its_numbers_are_those_of_its_runs(study):
    assert sorted(run.name for run in (study / "runs").iterdir()) == RUNS
    none, frs = results(study)["rows"]
    for row in (none, frs):
        own = [json.loads((Path(run) / "result.json").read_text())["coco"] for run in row["folders"]]
        for number in ("AP", "AP50", "AP75", "APs"):
            assert row[number]["of_seeds"] == [values[number] for values in own]
    differences = [a - b for a, b in zip(frs["AP"]["of_seeds"], none["AP"]["of_seeds"], strict=True)]
    assert frs["difference"]["of_seeds"] == pytest.approx(differences)
    assert frs["difference"]["mean"] == pytest.approx(sum(differences) / 2)
    low, high = frs["difference"]["interval"]
    half = 12.7062 * abs(differences[0] - differences[1]) / 2
    assert (low, high) == pytest.approx((sum(differences) / 2 - half, sum(differences) / 2 + half), rel=1e-4)
    assert none["difference"] is None
    assert frs["time_ratio"] > 0
    assert frs["memory_per_step"] > 0


def test_its_tables(study):
    rows, runs = (read_rows(study / name) for name in ("results.csv", "runs.csv"))
    found = results(study)["rows"]
    assert [row["row"] for row in rows] == [row["name"] for row in found] == ["none", "frs ramp_steps=0"]
    for row, expected in zip(rows, found, strict=True):
        assert float(row["AP_mean"]) == pytest.approx(expected["AP"]["mean"], abs=1e-6)
    assert [(run["row"], run["seed"]) for run in runs[:2]] == [("none", "0"), ("none", "1")]


def test_interrupted_and_failed_runs_are_those_of_the_study_in_the_end(study, plan, tmp_path, monkeypatch):
    """One after another: one is interrupted; another one fails, is reported, and is tried again on request."""
    folder, step = tmp_path / "study", Engine.training_step
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt, match=f"understudy study {folder}"):
        run_study(folder, replace(plan, seeds=(0,)))

    def failing(self, *arguments):
        if "frs" in self.config.run.name and self.global_step == 3:
            raise RunError("Step 3: frs_feature is nan.")
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "training_step", failing)
        found = run_study(folder)
    assert found.rows[1].missing == {0: "Step 3: frs_feature is nan."}
    assert results(folder)["rows"][1]["missing"] == {"0": "Step 3: frs_feature is nan."}
    assert "frs ramp_steps=0, seed 0: Step 3: frs_feature is nan." in results(folder)["sentences"]
    assert run_study(folder).rows[1].missing  # it is not tried again unasked
    assert not run_study(folder, retry=True).rows[1].missing
    for run in RUNS[::2]:
        assert_same(folder / "runs" / run, study / "runs" / run)
    for one, other in zip(results(study)["rows"], results(folder)["rows"], strict=True):
        assert one["AP"]["of_seeds"][:1] == other["AP"]["of_seeds"]


def test_interrupted_together_it_goes_on(study, plan, tmp_path):
    calls = iter([ctrl_c])
    with at_step(5, lambda: next(calls, int)()), pytest.raises(KeyboardInterrupt):
        run_study(tmp_path / "study", replace(plan, seeds=(0,)), together=True)
    run_study(tmp_path / "study", together=True)
    for run in RUNS[::2]:
        assert_same(tmp_path / "study/runs" / run, study / "runs" / run)


def test_one_bad_run_of_a_group_does_not_stop_the_others(study, plan, tmp_path, capsys):
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        run_study(tmp_path / "study", replace(plan, seeds=(0,)), together=True)
    (tmp_path / "study/runs" / RUNS[0] / "last.ckpt").write_bytes(b"damaged")
    run_study(tmp_path / "study", together=True)
    assert "One after another, since these runs cannot be trained side by side" in capsys.readouterr().err
    assert_same(tmp_path / "study/runs" / RUNS[2], study / "runs" / RUNS[2])
    assert [file.name for file in (tmp_path / "study/failed").iterdir()] == [f"{RUNS[0]}.txt"]


@pytest.mark.slow
def test_several_processes_have_the_same_runs_and_stop_on_a_signal(study, plan, tmp_path, capsys):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(replace(plan, seeds=(0,)).dump())

    def stop_after_an_epoch() -> None:
        end = time.monotonic() + 120
        while not list(folder.glob("runs/*/metrics.csv")) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_after_an_epoch).start()
    with pytest.raises(SystemExit) as stop:
        main(["study", str(folder), "--jobs", "2"])
    assert stop.value.code == 143
    assert f"Stopped and saved. To go on: understudy study {folder}" in capsys.readouterr().err
    run_study(folder)
    for run in RUNS[::2]:
        assert_same(folder / "runs" / run, study / "runs" / run)


def test_a_bug_is_no_failure_of_a_run(plan, tmp_path):
    with at_step(2, crash), pytest.raises(ZeroDivisionError):
        run_study(tmp_path / "study", plan)
    assert not (tmp_path / "study/failed").exists()


def test_what_is_refused(study, plan, tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds a study with other settings:\n  - steps: none in the study, 9 now"):
        run_study(study, replace(plan, steps=9))
    with pytest.raises(UserError, match="holds no study"):
        run_study(tmp_path / "new")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    with pytest.raises(UserError, match="is not empty and holds no study"):
        run_study(tmp_path / "photos", plan)
    with lock(study, "-"), pytest.raises(UserError, match="another study is running in it"):
        run_study(study)
    wrong = plan.with_more([read_row("frs nonsense=1")], [])
    with pytest.raises(UserError, match=r'row "frs nonsense=1": [\s\S]*no option "nonsense"'):
        run_study(tmp_path / "new", wrong)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("understudy.studies.running.version_of", lambda name: "9.9")
    with pytest.raises(UserError, match=r"have changed since it began:\n  - understudy: .* before, 9.9 now"):
        run_study(study)


def test_code_that_a_study_of_somebody_else_names_is_not_imported(plan, tmp_path):
    foreign = plan.with_more([read_row("evil.module:Method")], [])
    (tmp_path / "study.yaml").write_text(foreign.dump())
    for given in (None, plan):
        with pytest.raises(UserError, match=r"import methods from modules.*--trust evil\.module:Method"):
            run_study(tmp_path, given)


def test_other_data_are_refused_and_accepted_on_request(study, plan, tmp_path, capsys):
    facts = json.loads((study / "facts.json").read_text())
    for name in ("runs", "study.yaml", "matches"):
        (tmp_path / name).symlink_to(study / name)
    key = next(name for name in facts["made_with"] if name.startswith("annotations of data.train"))
    facts["made_with"][key] = "another"
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"annotations of data\.train"):
        run_study(tmp_path)
    assert run_study(tmp_path, accept_changes=True).rows[0].values["AP"]
    accepted = json.loads((tmp_path / "facts.json").read_text())
    assert accepted["accepted"] == [key]
    assert run_study(tmp_path).rows[0].values["AP"]  # it was accepted for good

    key = next(name for name in facts["made_with"] if name.startswith("annotations of data.val"))
    accepted["made_with"][key] = "another"
    (tmp_path / "facts.json").write_text(json.dumps(accepted))
    with pytest.raises(UserError, match=r"annotations of data\.val.*\n  - choose a new folder$"):
        run_study(tmp_path, accept_changes=True)


def test_a_full_disk_ends_the_study_and_is_no_failure_of_a_run(plan, tmp_path, monkeypatch):
    def full(self, *arguments):
        try:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise RunError("Could not write last.ckpt") from error
        except RunError as error:
            raise RunError("The disk is full: ...") from error  # as `run.fit` explains it

    monkeypatch.setattr(Engine, "training_step", full)
    with pytest.raises(RunError, match="The disk is full"):
        run_study(tmp_path / "study", replace(plan, seeds=(0,)))
    assert not (tmp_path / "study/failed").exists()


def test_kept_outputs_of_a_finished_run_are_given_up(study, plan, tmp_path):
    def stores() -> list[Store]:
        return [each for each in gc.get_objects() if isinstance(each, Store)]

    before = stores()  # of other tests
    run_study(tmp_path / "study", replace(plan, seeds=(0,)))
    assert [each for each in stores() if not any(each is other for other in before)] == []


def test_a_process_that_the_system_ends_is_explained(tmp_path):
    with pytest.raises(RunError, match=r"The system ended one of 2 processes, most likely because the memory was full"):
        list(in_processes([1], killed, 2))


def killed(group: int) -> list:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_damaged_matches_are_made_again(tmp_path):
    (tmp_path / "matches").mkdir()
    for content in (b"", b"PK\x03\x04 damaged"):
        (tmp_path / "matches/run.npz").write_bytes(content)
        assert StudyFolder(tmp_path).read_matches("run") is None


def test_what_a_study_that_exists_cannot_take_is_refused(study, capsys):
    for argument in ("--longer", "--steps=0", "--minutes=0"):
        with pytest.raises(SystemExit) as stop:
            main(["study", str(study), argument])
        assert stop.value.code == 2, argument
    assert "longer: False in the study, True now" in capsys.readouterr().err


def test_the_command(study, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study", str(study), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["name"] == "none"
    with pytest.raises(SystemExit):
        main(["study", str(study)])
    said = capsys.readouterr().out
    assert "frs ramp_steps=0" in said
    assert "95 %" in said


@pytest.mark.parametrize(("seeds", "reason"), [("a", "--seeds: expected integers"), ("1,1", "seeds: 1 given twice")])
def test_wrong_seeds(seeds, reason, tmp_path, trained, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study", str(tmp_path / "new"), "data=photos", f"teacher={trained}", "--seeds", seeds])
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err
