"""Logs of runs that did not help, written by hand: what each shows, most likely cause first."""

import json
import shutil
from pathlib import Path

import pytest
import run_folders

from understudy.diagnosis.afterwards import explain
from understudy.errors import UserError

RISING = [0.1, 0.2, 0.26, 0.31, 0.35, 0.38, 0.41, 0.44, 0.47, 0.50]
FLAT = [0.2, 0.3, 0.35, 0.38, 0.39, 0.395, 0.398, 0.399, 0.4, 0.4]
PEAK = [0.2, 0.3, 0.4, 0.41, 0.42, 0.4, 0.37, 0.35, 0.33, 0.31]


def finished(folder: Path, aps=FLAT, share=0.4, term=(5.0, 2.0), own=(2.0, 0.5), check=None, teacher="absent", **keys):
    """Write a finished run: its AP by epoch, and the course of its losses."""
    keys = {"schedule": {"epochs": len(aps)}} | keys
    run = run_folders.make_run(folder, max(aps), teacher=teacher, **keys)
    rows = ["epoch,step,AP,AP50,AP75,seconds"]
    rows += [f"{epoch},{10 * epoch},{ap},{ap},{ap},1.0" for epoch, ap in enumerate(aps, 1)]
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    extra = ",hint_feature,distillation_share,hint_feature_weight" if teacher else ""
    losses = [f"epoch,step,lr,total,classification{extra}"]
    for row in range(1, 11):
        part = (row - 1) / 9
        values = [row, 10 * row, 0.01, 1.0, own[0] + part * (own[1] - own[0])]
        values += [term[0] + part * (term[1] - term[0]), share, 1.0] if teacher else []
        losses.append(",".join(map(str, values)))
    (run / "losses.csv").write_text("\n".join(losses) + "\n")
    if check:
        file = run / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"teacher_check": check}))
    return run


def causes(*runs: Path):
    """The causes of a diagnosis, the most likely one first."""
    return [each.check for each in explain(*runs).findings if each.severity in ("fatal", "warning")]


GOOD = {"images": 50, "AP": 0.5, "student_AP": 0.4}


def test_a_log_that_shows_nothing_wrong_says_so(tmp_path):
    plain = finished(tmp_path / "plain", FLAT, teacher=None)
    found = explain(finished(tmp_path / "run", check=GOOD), plain)
    assert found.ok
    assert causes(tmp_path / "run", plain) == []
    assert "the log shows nothing wrong" in found.findings[0].what
    assert found.verdict() == "No fault was found."


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"share": 0.97}, "weights", "97.0% of the student's gradient"),
        ({"share": 0.001}, "weights", "0.1% of the student's gradient"),
        ({"term": (1.0, 100.0)}, "terms", "hint_feature grew from 1 to 100"),
        ({"term": (0.0, 0.0)}, "terms", "hint_feature was zero in 10 of 10 rows"),
        ({"own": (1.0, 2.0)}, "own losses", "did not fall: 1 at the start, 2 at the end"),
        (
            {"aps": RISING},
            "convergence",
            "not converged: best AP of this run 41.0 before 80% of its steps, 50.0 at its best",
        ),
        ({"aps": PEAK}, "peak", "AP fell after its peak: 42.0 at step 50, 31.0 at step 100"),
        ({"aps": [0.0] * 10}, "student's AP", "its best AP is 0.0"),
        ({"check": GOOD | {"AP": 0.005}}, "teacher's AP", "detects almost nothing right: AP 0.5"),
        ({"check": GOOD | {"AP": 0.3}}, "teacher's lead", "the student ends above its teacher: AP 40.0 and 30.0"),
        ({"methods": {"hint": {"ramp_steps": 400}}}, "ramp", "methods.hint.ramp_steps=400, but the run had 100 steps"),
    ],
)
def test_each_cause_is_named(tmp_path, changes, check, words):
    run = finished(tmp_path / "run", **({"check": GOOD} | changes))
    found = {finding.check: finding for finding in explain(run).findings}
    assert causes(run) == [check]
    assert words in found[check].what
    assert found[check].remedy


def test_the_most_likely_cause_comes_first(tmp_path):
    run = finished(tmp_path / "run", RISING, share=0.995, check=GOOD | {"AP": 0.001})
    assert causes(run) == ["teacher's AP", "weights", "convergence"]
    found = explain(run)
    assert not found.ok
    assert found.verdict() == "Most likely cause: teacher's AP. Others: weights, convergence."


def test_a_plain_run_with_another_budget_and_hardly_a_gap(tmp_path):
    run = finished(tmp_path / "run", check=GOOD | {"AP": 0.41})
    plain = finished(tmp_path / "plain", [*FLAT, 0.4], teacher=None)
    assert causes(run, plain) == ["teacher's lead", "budget"]
    what = {finding.check: finding.what for finding in explain(run, plain).findings}
    assert "epochs (10 and 11)" in what["budget"]
    assert "one seed cannot tell" in what["gain"]


def test_an_unconverged_plain_student(tmp_path):
    plain = finished(tmp_path / "plain", RISING, teacher=None)
    run = finished(tmp_path / "run", check=GOOD | {"AP": 0.6})
    found = explain(run, plain).findings
    assert [each.what for each in found if each.severity == "warning"] == [
        f"not converged: best AP of the plain run {plain} 41.0 before 80% of its steps, 50.0 at its best"
    ]


def test_few_evaluations_show_no_course(tmp_path):
    found = explain(finished(tmp_path / "run", FLAT[:4], check=GOOD)).findings
    assert [each.check for each in found if "has 4 evaluations: too few" in each.what] == ["convergence"]


def test_a_run_that_is_not_finished(tmp_path):
    run = finished(tmp_path / "run", share=0.4)
    (run / "result.json").unlink()
    assert causes(run) == ["progress"]
    (run / "losses.csv").unlink()
    (run / "metrics.csv").unlink()
    found = explain(run).findings[0]
    assert found.remedy == f"understudy resume {run}"


def test_a_real_run(distilled, trained):
    found = explain(distilled, trained)
    assert {finding.check for finding in found.findings} >= {"convergence", "teacher's AP"}


def test_an_interrupted_run_keeps_what_it_found_of_its_teacher(distilled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(distilled, run)
    expected = json.loads((run / "result.json").read_text())["teacher_check"]["AP"]
    (run / "result.json").unlink()
    found = {finding.check: finding for finding in explain(run).findings}
    assert found["progress"].remedy == f"understudy resume {run}"
    assert f"{100 * expected:.1f}" in found["teacher's AP"].what


def test_classes_that_the_teacher_lacks(tmp_path):
    run = finished(tmp_path / "run", check=GOOD)
    pairing = {"classes": ["cat"], "classes_unknown_to_the_teacher": ["dog"]}
    (run / "environment.json").write_text(json.dumps({"pairing": pairing}))
    found = {finding.check: finding for finding in explain(run).findings}
    assert found["class names"].what == "the teacher lacks 1 of 2 classes: dog"
    assert found["class names"].severity == "warning"


def test_wrong_folders_are_one_message_each(tmp_path):
    run = finished(tmp_path / "run")
    with pytest.raises(UserError, match="is given twice"):
        explain(run, run)
    with pytest.raises(UserError, match="not a run folder"):
        explain(tmp_path)
    other = finished(tmp_path / "other")
    with pytest.raises(UserError, match="is a distilled run; the second one must be a plain student"):
        explain(run, other)
    (other / "result.json").write_text('{"coco": 3}')
    with pytest.raises(UserError, match=r"result\.json is damaged: it has no AP"):
        explain(other)
    (run / "losses.csv").write_text("epoch,step\n1,x\n")
    with pytest.raises(UserError, match="step is 'x', not a number"):
        explain(run)
