"""Agreement of ranks: which anchors are compared, what is averaged, and which pairs are refused."""

import json
import statistics

import numpy as np
import pytest

from understudy.analysis.correlation import kendall, spearman
from understudy.analysis.ranks import BINS, Ranks
from understudy.cli import main
from understudy.errors import UserError


@pytest.mark.parametrize("family", ["fcos", "retinanet", "faster_rcnn"])
def test_numbers_are_those_of_a_loop_over_objects(model, batch, data, records, family):
    teacher, student = model("teacher", family), model("student", family, noise=0.05)
    found = Ranks(teacher, [student], data)
    outputs = records(teacher, student)
    found.add(batch, outputs)
    (result,) = found.result().students
    taus, rhos, same, sizes = [], [], [], []
    gt_index = student.detector.assign(outputs["student"], batch.targets)
    for image, target in enumerate(batch.targets):
        for number, label in enumerate(target["labels"].tolist()):
            label = 0 if student.detector.spec.objectness else label
            own, theirs = [], []
            first = 0
            for level, other in zip(outputs["student"].class_logits, outputs["teacher"].class_logits, strict=True):
                count = level[0].shape[:3].numel()
                for place in range(count):
                    if gt_index[image, first + place] == number:
                        own.append(float(level[image].flatten(0, 2)[place, label]))
                        theirs.append(float(other[image].flatten(0, 2)[place, label]))
                first += count
            if len(own) > 1:
                sizes.append(len(own))
                taus.append(kendall(np.array(own), np.array(theirs)))
                rhos.append(spearman(np.array(own), np.array(theirs)))
                same.append(own.index(max(own)) == theirs.index(max(theirs)))
    assert result.objects == len(taus) > 1
    assert result.anchors == pytest.approx(statistics.fmean(sizes))
    assert result.kendall == pytest.approx(statistics.fmean(taus), abs=1e-6)
    assert result.kendall_spread == pytest.approx(statistics.stdev(taus), abs=1e-6)
    assert result.spearman == pytest.approx(statistics.fmean(rhos), abs=1e-6)
    assert result.top == pytest.approx(statistics.fmean(same))
    assert result.chance == pytest.approx(statistics.fmean(1 / size for size in sizes))
    assert sum(result.histogram) == pytest.approx(1)


def test_a_student_that_is_the_teacher_agrees_in_everything(model, batch, data, records):
    teacher, same, other = model("teacher"), model("same"), model("other", noise=0.3)
    found = Ranks(teacher, [same, other], data)
    found.add(batch, records(teacher, same, other))
    result = found.result()
    assert (result.students[0].kendall, result.students[0].top) == (pytest.approx(1), 1)
    assert result.students[1].kendall < 1
    assert len(result.students[0].histogram) == BINS
    assert result.students[0].histogram[-1] == 1
    assert [line.get_label().split()[0] for line in result.figures()["ranks"].figure.axes[0].lines] == ["same", "other"]
    assert json.loads(json.dumps(result.to_dict()))["students"][0]["student"] == "same"


def test_without_objects_there_is_nothing_to_rank(model, batch, data, records):
    teacher = model("teacher")
    empty = [{"boxes": t["boxes"][:0], "labels": t["labels"][:0]} for t in batch.targets]
    batch.targets[:], before = empty, list(batch.targets)
    found = Ranks(teacher, [model("student")], data)
    found.add(batch, records(teacher, model("student")))
    batch.targets[:] = before
    (result,) = found.result().students
    assert (result.objects, result.kendall, result.top) == (0, None, None)
    assert found.result().figures()["ranks"].caption


def test_pairs_that_cannot_be_compared_are_all_named(model, data):
    teacher = model("teacher", "retinanet")
    students = [model("points", "fcos"), model("others", "retinanet", classes=("x", "y", "z"))]
    with pytest.raises(UserError) as error:
        Ranks(teacher, students, data)
    message = str(error.value)
    assert "`understudy analyse ranks` cannot compare these with teacher" in message
    assert "points: the student" in message
    assert "anchor" in message
    assert "others: " in message
    assert "no class of the same name" in message


def test_the_command(trained, distilled, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", "ranks", str(trained), str(distilled), str(trained / "last.ckpt"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert len(result["students"]) == 2
    assert result["images"] == 4
