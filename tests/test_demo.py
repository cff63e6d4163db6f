"""The demo on a few scenes: every file that it writes, with the teacher that comes with the package."""

import json

import pytest

from understudy import demo
from understudy.checkpoints import load_checkpoint
from understudy.config import DistillConfig, TrainConfig
from understudy.errors import RunError, UserError
from understudy.evaluation.speed import race


@pytest.mark.slow
def test_the_demo_makes_runs_table_and_page(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "STUDENT_SCENES", 16)
    monkeypatch.setattr(demo, "VALIDATION_SCENES", 3)
    monkeypatch.setattr(demo, "STUDENT_EPOCHS", 1)
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setitem(race.__kwdefaults__, "rounds", 3)
    lines = []
    table = demo.run_demo(tmp_path / "demo", seed=3, say=lines.append)

    assert [row["role"] for row in table.to_dict()["rows"]] == ["teacher", "plain", "distilled"]
    notes = " ".join(table.to_dict()["notes"])
    assert "learning rate" in notes  # the teacher had another budget, and the table says so,
    assert "cannot be compared" not in notes  # but was measured on the same images
    page = (tmp_path / "demo/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    for run in ("teacher", "plain", "distilled"):
        assert json.loads((tmp_path / "demo" / run / "result.json").read_text())["images"] == 3
    plain, distilled = (load_checkpoint(tmp_path / "demo" / run).config for run in ("plain", "distilled"))
    others = {key for key in distilled if distilled[key] != plain.get(key)}
    assert others == {"run"} | (DistillConfig.model_fields.keys() - TrainConfig.model_fields.keys())
    assert lines[0].startswith("1/6")
    assert lines[-1].startswith("6/6")
    assert lines[-2].endswith("without onnx, onnxscript, onnxruntime. Install them: pip install 'understudy[onnx]'")

    with pytest.raises(UserError, match=r"is not an empty folder\. Choose another one: --output FOLDER"):
        demo.run_demo(tmp_path / "demo")


def test_the_student_is_exported_and_a_failure_is_said(tmp_path, monkeypatch):
    calls = []

    def export(run, folder, formats, *, size):
        calls.append((run, folder, formats, size))
        if len(calls) > 1:
            raise RunError("PyTorch 9 could not export this.")
        return folder

    lines = []
    monkeypatch.setattr(demo, "find_spec", lambda name: name)
    monkeypatch.setattr(demo, "export", export)
    assert demo.export_student(tmp_path / "a", tmp_path / "b", lines.append) == [tmp_path / "b/student.onnx"]
    assert calls == [(tmp_path / "a", tmp_path / "b", ["onnx"], (demo.SIZE, demo.SIZE))]
    assert demo.export_student(tmp_path / "a", tmp_path / "b", lines.append) == []
    assert lines[-1].strip() == "PyTorch 9 could not export this."


def test_the_shipped_teacher_knows_the_scenes(tmp_path):
    """Its average precision on scenes it has not seen; a broken or stale file would score near zero."""
    import understudy
    from understudy.data.scenes import SCENE_CLASSES, make_scenes

    teacher = load_checkpoint(demo.Path(understudy.__file__).parent / "demo_teacher")
    assert teacher.classes == SCENE_CLASSES
    scenes = make_scenes(tmp_path / "scenes", train=1, val=24, size=demo.SIZE, seed=11)
    assert demo.evaluate(teacher.path, scenes, split="val", batch_size=8).coco["AP"] > 0.6


def test_a_seed_of_the_teachers_scenes_is_refused(tmp_path):
    with pytest.raises(UserError, match="--seed: expected an integer from 0 to 999999, got 1000000"):
        demo.run_demo(tmp_path / "demo", seed=demo.TEACHER_SEED)
