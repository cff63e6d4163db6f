"""Logs of runs that did not help, written by hand: what each shows, most likely cause first."""

import json
import shutil
from pathlib import Path

import pytest
import run_folders

from understudy.config.methods import DEFAULT_METHODS
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
    verdict = "The difference from the plain student (0.0 AP) is within the noise of one seed. No fault was found."
    assert found.verdict() == verdict
    assert explain(tmp_path / "run").verdict() == "No fault was found."


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"share": 0.97}, "weights", "97.0% of the student's gradient"),
        ({"share": 0.001}, "weights", "0.1% of the student's gradient"),
        ({"share": 0.97, "balance": "off"}, "weights", "97.0% of the student's gradient"),
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
    assert ("balance=0.8, so that weights follow" in found[check].remedy) is ("balance" in changes)


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
    found = explain(run, plain)
    assert [each.what for each in found.findings if each.check == "convergence" and each.severity == "warning"] == [
        f"not converged: best AP of the plain run {plain} 41.0 before 80% of its steps, 50.0 at its best"
    ]
    verdict = "The student is 10.0 AP below the plain one. Most likely cause: convergence. Others: overtaken."
    assert found.verdict() == verdict


def lowered(aps, *by):
    """The course of another run, lower by these AP; the last one holds from there on."""
    return [ap - by[min(place, len(by) - 1)] for place, ap in enumerate(aps)]


@pytest.mark.parametrize(
    ("plain", "check", "words", "verdict"),
    [
        (
            lowered(FLAT, -0.06, -0.05, -0.04),
            "slower learning",
            "below the plain student by 4.6 AP on average in the first half; in the end -4.0",
            "The student is 4.0 AP below the plain one. Most likely cause: slower learning.",
        ),
        (
            lowered(FLAT, 0.12, 0.1, 0.06, 0.03, 0.02, 0.0),
            "caught up",
            "by 6.6 AP on average in the first half; in the end 0.0; it had the plain student's best AP (40.0) "
            "after 90 of 100 steps",
            "The difference from the plain student (0.0 AP) is within the noise of one seed. Most likely cause: caught "
            "up.",
        ),
        (
            lowered(FLAT, 0.12, 0.1, 0.06, 0.03),
            "course",
            "+6.8 AP against the plain student on average in the first half; in the end +3.0; it had the plain "
            "student's best AP (37.0) after 40 of 100 steps",
            "The student is 3.0 AP above the plain one. No fault was found.",
        ),
    ],
)
def test_the_course_of_the_lead(tmp_path, plain, check, words, verdict):
    run, plain = finished(tmp_path / "run", check=GOOD), finished(tmp_path / "plain", plain, teacher=None)
    found = explain(run, plain)
    assert [each.what.endswith(words) for each in found.findings if each.check == check] == [True]
    assert found.verdict() == verdict


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ({}, "balance=0.4 (now 0.8), or the default methods (no --method)"),
        ({"balance": "off"}, "balance=0.8, so that weights follow from the gradient (now off), or the default methods"),
        ({"methods": {"pkd": {"adapt": True}, "frs": {}}, "balance": 0.4}, "balance=0.2 (now 0.4), or the default"),
        ({"methods": DEFAULT_METHODS}, "balance=0.4 (now 0.8)"),
    ],
)
def test_what_may_mend_a_loss(tmp_path, keys, remedy):
    plain = finished(tmp_path / "plain", lowered(FLAT, -0.06, -0.05, -0.04), teacher=None)
    found = explain(finished(tmp_path / "run", check=GOOD, **keys), plain).findings[0]
    assert found.check == "slower learning"
    assert found.remedy.startswith(remedy)
    assert found.remedy.endswith(("--method)", "0.8)"))


def test_a_loss_of_which_the_log_shows_no_cause(tmp_path):
    plain = finished(tmp_path / "plain", lowered(FLAT, 0.02, 0.02, 0.0, 0.0, -0.05), teacher=None)
    found = explain(finished(tmp_path / "run", check=GOOD), plain)
    assert "but it is below the plain student" in found.findings[0].what
    assert found.findings[0].remedy
    assert found.verdict() == "The student is 5.0 AP below the plain one. The log shows no cause."


@pytest.mark.parametrize(("plain", "verdict"), [(0.38, "above"), (0.42, "below")])
def test_two_ap_are_more_than_noise(tmp_path, plain, verdict):
    run = finished(tmp_path / "run", FLAT, check=GOOD | {"AP": 0.6})
    other = finished(tmp_path / "plain", [ap * plain / 0.4 for ap in FLAT], teacher=None)
    assert explain(run, other).outcome == f"The student is 2.0 AP {verdict} the plain one."


@pytest.mark.parametrize(
    ("methods", "remedy"),
    [
        ({"frs": {"share": 0.6}, "pkd": {"share": 0.2}}, "lower shares of the methods, or"),
        ({"frs": {"feature_weight": 0.1, "class_weight": 0.1}}, "no weights, so that they follow from the gradient"),
    ],
)
def test_a_remedy_does_not_contradict_what_is_given(tmp_path, methods, remedy):
    plain = finished(tmp_path / "plain", lowered(FLAT, -0.06, -0.05, -0.04), teacher=None)
    found = explain(finished(tmp_path / "run", check=GOOD, methods=methods), plain).findings[0]
    assert (found.check, found.remedy[: len(remedy)]) == ("slower learning", remedy)


def test_another_detector_is_not_the_plain_student(tmp_path):
    plain = finished(tmp_path / "plain", teacher=None, detector={**run_folders.STUDENT, "anchor_scale": 3.0})
    found = explain(finished(tmp_path / "run", check=GOOD), plain).findings[0]
    assert "are not the same detector: detector.anchor_scale (null and 3.0)" in found.what
    assert found.remedy == "train the plain student with detector.anchor_scale=null"


def numbers(run: Path, per_class, **coco):
    """Replace the results of a run by class, and some of COCO's numbers."""
    result = json.loads((run / "result.json").read_text())
    result |= {"per_class": per_class, "coco": result["coco"] | coco}
    (run / "result.json").write_text(json.dumps(result))


def test_where_it_was_lost_and_gained_beside_the_teachers_lead(tmp_path):
    teacher = finished(tmp_path / "teacher", lowered(FLAT, -0.1), teacher=None, detector=run_folders.TEACHER)
    run = finished(tmp_path / "run", teacher=teacher)
    plain = finished(tmp_path / "plain", lowered(FLAT, 0.03), teacher=None)
    numbers(teacher, {"cat": 0.5, "dog": 0.3, "cow": 0.6})
    numbers(run, {"cat": 0.45, "dog": 0.3, "cow": 0.5}, APs=0.2, APm=0.4)
    numbers(plain, {"cat": 0.41, "dog": 0.32, "cow": 0.5}, APs=0.25, APm=0.3)
    found = {each.check: each for each in explain(run, plain).findings}
    assert found["teacher's AP"].what == "AP 50.0 on the same 7 images, in its own run, the student 40.0"
    assert found["where"].what == (
        "AP against the plain student, by class (the lead of the teacher): dog -2.0 (-2.0), cow 0.0 (+10.0), "
        "cat +4.0 (+9.0); by size: small -5.0, medium +10.0, large +3.0"
    )


def test_classes_that_are_hardly_detected(tmp_path):
    teacher = finished(tmp_path / "teacher", lowered(FLAT, -0.1), teacher=None, detector=run_folders.TEACHER)
    run = finished(tmp_path / "run", teacher=teacher)
    numbers(teacher, {"cat": 0.5, "dog": 0.3, "cow": 0.6})
    numbers(run, {"cat": 0.45, "dog": 0.004, "cow": 0.5, "sheep": float("nan")})
    (found,) = [each for each in explain(run).findings if each.check == "classes"]
    assert found.what == "it hardly detects 1 of 4 classes: AP of dog 0.4 (the teacher 30.0)"
    start = "class_balance=true (one-stage detectors), a longer run (schedule.epochs, now 10), more pixels"
    assert found.remedy.startswith(start)
    plain = finished(tmp_path / "plain", teacher=None)
    numbers(plain, {"cat": 0.45, "dog": 0.0})
    (found,) = [each for each in explain(plain).findings if each.check == "classes"]
    assert found.what == "it hardly detects 1 of 2 classes: AP of dog 0.0"
    for even in ({"cat": 0.45, "dog": 0.02}, {"cat": 0.05, "dog": 0.0}):  # learnt little, or nothing as yet
        numbers(run, even)
        assert "classes" not in [each.check for each in explain(run).findings]


@pytest.mark.parametrize("content", ["{}", "{", '{"coco": {"AP": 0.5}}'])
def test_the_teachers_own_run_counts_only_if_it_is_whole_and_of_the_same_size(tmp_path, content):
    teacher = finished(tmp_path / "teacher", lowered(FLAT, -0.1), teacher=None, detector=run_folders.TEACHER)
    run, plain = finished(tmp_path / "run", teacher=teacher), finished(tmp_path / "plain", teacher=None)
    assert {each.check: each for each in explain(run, plain).findings}["teacher's AP"].severity == "ok"
    (teacher / "result.json").write_text(content)
    assert {each.check: each for each in explain(run, plain).findings}["teacher's AP"].what.startswith("unknown")
    other = finished(tmp_path / "other", teacher=None, detector=run_folders.TEACHER)
    keys = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(keys.replace("longer_side: 96", "longer_side: 900"))
    run = finished(tmp_path / "run2", teacher=other)
    assert {each.check: each for each in explain(run).findings}["teacher's AP"].what.startswith("unknown")


def test_the_teachers_own_run_counts_only_with_the_weights_that_were_used(distilled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(distilled, run)
    result = json.loads((run / "result.json").read_text())
    result.pop("teacher_check")
    (run / "result.json").write_text(json.dumps(result))
    assert "in its own run" in {each.check: each for each in explain(run).findings}["teacher's AP"].what
    environment = json.loads((run / "environment.json").read_text())
    environment["fingerprints"]["weights of the teacher"] = "0"
    (run / "environment.json").write_text(json.dumps(environment))
    assert {each.check: each for each in explain(run).findings}["teacher's AP"].what.startswith("unknown")


def test_damaged_numbers_are_no_traceback(tmp_path):
    run, plain = finished(tmp_path / "run", check={"AP": None}), finished(tmp_path / "plain", teacher=None)
    assert {each.check: each for each in explain(run).findings}["teacher's AP"].what.startswith("unknown")
    lines = (plain / "metrics.csv").read_text().splitlines()
    (plain / "metrics.csv").write_text(
        "\n".join([lines[0], *(f"{row},{10 * row},nan,nan,nan,1" for row in range(1, 11))])
    )
    assert not any("nan" in each.what for each in explain(run, plain).findings if each.check == "course")
    (plain / "metrics.csv").write_text("\n".join([lines[0], *lines[7:]]))
    assert "course" not in {each.check for each in explain(run, plain).findings}


def test_a_two_stage_student_without_a_gain_is_sent_to_the_proposals(tmp_path):
    two_stage = {"name": "faster_rcnn_mobilenet_v2", "neck_channels": 8}
    teacher, plain = (finished(tmp_path / name, teacher=None, detector=two_stage) for name in ("teacher", "plain"))
    run = finished(tmp_path / "run", teacher=teacher, detector=two_stage)
    found = {each.check: each for each in explain(run, plain).findings}
    assert found["proposals"].remedy == f"understudy analyse proposals {teacher} {plain}"
    features = finished(tmp_path / "features", teacher=teacher, detector=two_stage, methods={"hint": {}})
    assert "proposals" not in {each.check for each in explain(features, plain).findings}
    without = {"frs": {"class_weight": 0.0, "box_weight": 0.0}}  # as by default; its features remain
    default = finished(tmp_path / "default", teacher=teacher, detector=two_stage, methods=without)
    assert "proposals" not in {each.check for each in explain(default, plain).findings}


def test_many_classes_are_those_that_lost_and_gained_most(tmp_path):
    run, plain = finished(tmp_path / "run", check=GOOD), finished(tmp_path / "plain", teacher=None)
    numbers(run, {f"c{place}": 0.4 + place / 100 for place in range(10)})
    numbers(plain, {f"c{place}": 0.4 for place in range(10)})
    what = {each.check: each.what for each in explain(run, plain).findings}["where"]
    assert "c0 0.0, c1 +1.0, c2 +2.0, c7 +7.0, c8 +8.0, c9 +9.0; by size" in what


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
    checks = {finding.check for finding in found.findings}
    assert "convergence" in checks
    assert checks & {"teacher's AP", "teacher's lead"}  # a tiny student may end above its teacher


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
    plains = [finished(tmp_path / name, teacher=None) for name in ("plain", "plain2")]
    with pytest.raises(UserError, match="plain is a plain run; the first of two must be distilled"):
        explain(*plains)
    (other / "result.json").write_text('{"coco": 3}')
    with pytest.raises(UserError, match=r"result\.json is damaged: it has no AP"):
        explain(other)
    (run / "losses.csv").write_text("epoch,step\n1,x\n")
    with pytest.raises(UserError, match="step is 'x', not a number"):
        explain(run)
