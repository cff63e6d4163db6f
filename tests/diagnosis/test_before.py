"""The whole examination of a pair: a healthy one, and faults that end it early."""

import json
import shutil

import pytest
from arguments import arguments_of
from PIL import Image

import understudy
from understudy.cli import main
from understudy.errors import UserError


@pytest.fixture
def run(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["doctor", *arguments])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


def test_a_healthy_pair_passes_clean_and_nothing_is_written(keys, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments_of(keys), "--images", "12", "--steps", "4", "--json")
    found = json.loads(out)
    assert [each for each in found["findings"] if each["severity"] in ("fatal", "warning")] == []
    assert (code, found["ok"], found["verdict"]) == (0, True, "No fault was found.")
    checks = {each["check"] for each in found["findings"]}
    assert checks >= {"data", "teacher's AP", "class names", "pixels", "image size", "levels", "anchors", "methods"}
    assert checks >= {"cost", "terms", "weights", "capacity", "teacher is frozen", "teacher's lead", "student's size"}
    assert err.startswith("Examining the pair ...")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite(keys, planted, run):
    def break_one(state):
        next(value for value in state.values() if value.dim() > 1).fill_(float("nan"))

    code, out, _ = run(*arguments_of(keys | {"teacher": planted(break_one)}))
    assert code == 1
    assert out.startswith("fatal    teacher's weights: The weights in")
    assert "contains nan" in " ".join(out.split())
    assert "Do not train like this: 1 fatal fault (teacher's weights)." in out


def test_a_pair_that_is_refused(keys, planted):
    found = understudy.doctor(keys | {"teacher": planted(classes=["a", "b", "c", "d"])}, images=8)
    assert [each.check for each in found.findings if each.severity == "fatal"] == ["class names", "pair"]
    assert "cannot be paired" in found.findings[-1].what
    assert not found.ok


def test_another_detector_in_place_of_the_plain_student_is_named(keys, teacher, planted):
    refused = keys | {"teacher": planted(classes=["a", "b", "c", "d"])}  # so that the examination ends here
    found = {each.check: each for each in understudy.doctor(refused, plain=teacher, images=8).findings}
    assert f"the plain one ({teacher}) are not the same detector: detector." in found["detector"].what
    assert found["detector"].remedy.startswith("train the plain student with detector.")


def test_images_without_annotations_say_what_cannot_be_known(keys, tmp_path):
    for number in range(3):
        Image.effect_noise((96, 96), 60).convert("RGB").save(tmp_path / f"{number}.png")
    found = understudy.doctor(keys | {"data": {"path": tmp_path, "shorter_side": 64, "longer_side": 64}})
    assert found.findings[0].check == "ground truth"
    assert "Not known without them: the teacher's AP and its lead, class names" in found.findings[0].what
    checks = ["image size", "teacher's detections", "levels", "methods", "student's size"]
    assert [each.check for each in found.findings[1:]] == checks


def test_a_data_set_with_a_fault_is_not_a_folder_of_images(keys, pictures):
    found = understudy.doctor(keys | {"data": keys["data"] | {"path": pictures, "val": "valx"}})
    assert [(each.check, each.severity) for each in found.findings] == [("data", "fatal")]
    assert 'has no split "valx"' in found.findings[0].what


def test_a_data_set_that_cannot_be_read(keys, pictures, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    for file in broken.rglob("*.json"):
        file.write_text("{")
    found = understudy.doctor(keys | {"data": {"path": broken}})
    assert [(each.check, each.severity) for each in found.findings] == [("data", "fatal")]


def test_an_image_that_cannot_be_read(keys, pictures, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    for file in (file for file in broken.rglob("*") if file.suffix in (".png", ".jpg")):
        file.write_bytes(file.read_bytes()[:200])
    found = understudy.doctor(keys | {"data": keys["data"] | {"path": broken}}, images=8)
    assert [(each.check, each.severity) for each in found.findings] == [("data", "warning"), ("run", "fatal")]


def test_bad_input_is_one_message(keys, run, teacher, distilled):
    with pytest.raises(UserError, match=r"do not exist:\n  - .*absent"):
        understudy.doctor(keys | {"teacher": "absent"})
    with pytest.raises(UserError, match="it takes no config keys"):
        understudy.doctor(teacher, seed=1)
    with pytest.raises(UserError, match="is a distilled run; expected a student that was trained without"):
        understudy.doctor(keys, plain=distilled)
    assert run()[0] == 2
    code, _, err = run("a", "b", "c")
    assert (code, "got a, b, c" in err) == (2, True)
    code, _, err = run(str(teacher), "--steps", "3")
    assert (code, "--images and --steps have no effect on a run folder" in err) == (2, True)
    code, out, _ = run(str(teacher))
    assert (code, "No fault was found." in out) == (0, True)
