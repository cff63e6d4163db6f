"""The errors of several models: counts, AP50, hardest images, and the command."""

import json

import pytest

from understudy.analysis.errors import KINDS, _hardness, analyse_errors
from understudy.cli import main
from understudy.errors import UserError
from understudy.evaluation import evaluate


def test_ap50_is_that_of_the_evaluation_and_counts_are_over_the_score(confident, trained):
    checkpoint = confident("retinanet_resnet18")
    result = analyse_errors([trained, checkpoint], score=0.05, device="cpu")
    for model, path in zip(result.models, (trained, checkpoint), strict=True):
        assert model.ap50 == pytest.approx(evaluate(path, device="cpu").coco["AP50"])
        assert set(model.counts) == set(model.cost) == set(KINDS)
    assert result.models[0].ap50 > 0
    nothing = analyse_errors([trained], score=1.0, device="cpu")
    assert sum(nothing.models[0].counts.values()) == nothing.models[0].counts["missed"] == nothing.objects
    assert nothing.models[0].ap50 == result.models[0].ap50


def test_the_hardest_images_come_first():
    errors = {"calm": [1, 1], "alike": [9, 9], "different": [0, 5], "slightly": [4, 6]}
    assert sorted(errors, key=lambda i: _hardness(errors[i], "difference")) == [
        "different",
        "slightly",
        "alike",
        "calm",
    ]
    assert sorted(errors, key=lambda i: _hardness(errors[i], "errors")) == ["alike", "slightly", "different", "calm"]
    alone = {"calm": [1], "hard": [3]}
    assert sorted(alone, key=lambda i: _hardness(alone[i], "difference")) == ["hard", "calm"]


def test_named_images_are_analysed_and_drawn_alone(trained, distilled, scenes):
    name = sorted((scenes / "val").iterdir())[2].name if (scenes / "val").is_dir() else None
    name = name or analyse_errors([trained], device="cpu").shown_names[-1]
    result = analyse_errors([trained, distilled], names=[name], score=0.0, device="cpu")
    assert (result.images, result.shown_names) == (1, (name,))
    (row,) = result.shown
    assert [cell.head for cell in row] == ["ground truth", "trained", "distilled"]
    shown = result.models[0]
    total = sum(int(word) for word in row[1].words.replace(",", "").split() if word.isdigit())
    assert total == shown.correct + sum(shown.counts.values())
    assert len(row[1].figure.axes[0].patches) == total
    with pytest.raises(UserError, match="no such image"):
        analyse_errors([trained], names=["absent.jpg"])


def test_the_command_prints_both_tables_and_refuses_wrong_options(trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", "errors", str(trained), "--images", "2", "--shown", "1", "-o", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "AP50 that each type costs" in out
    assert "2 images" in out
    assert {file.stem for file in (tmp_path / "out").iterdir()} == {"errors", "errors_cost", "errors_images"}
    numbers = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert numbers["thresholds"] == {"foreground": 0.5, "background": 0.1}
    with pytest.raises(SystemExit) as end:
        main(["analyse", "errors", str(trained), "--by", "luck"])
    assert end.value.code == 2
    assert "--by: expected difference or errors, got luck" in capsys.readouterr().err
    with pytest.raises(UserError, match="--score: expected a number from 0 to 1, got 3"):
        analyse_errors([trained], score=3)
