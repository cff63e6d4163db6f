"""The analysis of proposals: models side by side, and a remark where a student's are better than its teacher's."""

import json

import pytest

import understudy
from understudy.analysis.proposals import Proposals
from understudy.cli import main
from understudy.errors import UserError


@pytest.fixture
def found(model, batch, data, records):
    """The analysis of a teacher, and of a student that proposes the objects themselves."""
    teacher, student = model("teacher", "faster_rcnn"), model("student", "faster_rcnn")
    outputs = records(teacher, student)
    student.detector.proposals = lambda *_: [target["boxes"] for target in batch.targets]

    def found(*order):
        analysis = Proposals([{"teacher": teacher, "student": student}[name] for name in order], data)
        analysis.add(batch, outputs)
        return analysis.result()

    return found


def test_a_student_with_better_proposals_is_remarked(found):
    result = found("teacher", "student")
    assert result.models["student"].average == {10: 1.0, 100: 1.0, 1000: 1.0}
    assert result.models["teacher"].best < 1
    assert "The proposals of student find more objects than those of teacher (AR1000 100.0 and" in result.notes[1]
    assert len(found("student", "teacher").notes) == 1


def test_tables_figure_and_json_have_every_model_and_class(found):
    result = found("teacher", "student")
    values = json.loads(json.dumps(result.to_dict()))
    assert [each["name"] for each in values["models"]] == ["teacher", "student"]
    assert values["models"][1]["average"] == {"10": 1.0, "100": 1.0, "1000": 1.0}
    axes = result.figures()["proposals"].figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(values["models"][0]["per_class"])
    means, _, classes, *_ = result.__rich__().renderables
    assert (means.row_count, classes.row_count) == (2, len(values["models"][0]["objects"]))


def test_detectors_without_proposals_are_all_named(model, data):
    models = [model("teacher", "faster_rcnn"), model("points", "fcos"), model("dense", "retinanet")]
    with pytest.raises(UserError) as error:
        Proposals(models, data)
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == ["  - points", "  - dense"]


def test_the_command(tiny, tmp_path, capsys):
    keys = {"detector.name": "faster_rcnn_mobilenet_v2", "detector.settings": {"fc_channels": 32}, "schedule.epochs": 1}
    run = understudy.train(tiny | keys, run=tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        main(["analyse", "proposals", str(run), str(run / "last.ckpt"), "-o", str(tmp_path / "out"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert result["images"] == 4
    assert len(result["models"]) == 2
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "proposals.html",
        "proposals.json",
        "proposals.png",
        "proposals.svg",
    }
