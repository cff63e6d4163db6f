"""The swap test: a teacher on its own maps, on a student's, and after the transforms that Dist2 trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import understudy
from understudy.analysis.imitation import analyse_imitation
from understudy.analysis.ranks import analyse_ranks
from understudy.analysis.swap import Swap, SwapTest, swap_test
from understudy.checkpoints import read_checkpoint, write_checkpoint
from understudy.cli import main
from understudy.errors import UserError
from understudy.evaluation import evaluate
from understudy.files import read_rows
from understudy.methods.dist2_layers import ALL2ALL
from understudy.training.folder import RunFolder


@pytest.fixture(scope="module")
def tiny_keys(tiny) -> dict[str, Any]:
    return tiny | {"detector.neck_channels": 24, "schedule.epochs": 1}


@pytest.fixture(scope="module")
def dist2_run(tiny_keys, trained, tmp_path_factory) -> Path:
    """A finished tiny run with Dist2, one strategy a step."""
    methods = {"dist2": {"draw": "one", "ramp_steps": 2}}
    return understudy.distill(
        tiny_keys, run=tmp_path_factory.mktemp("runs") / "dist2", teacher=trained, methods=methods
    )


def test_a_teacher_of_larger_images_sees_them_in_the_analyses_of_its_students(tiny_keys, trained, tmp_path):
    half = {"data.shorter_side": 32, "data.longer_side": 32, "teacher_scale": 2, "methods": {"dist2": {}}}
    run = understudy.distill(tiny_keys | half, run=tmp_path / "run", teacher=trained)
    found = swap_test(trained, run, device="cpu")
    assert found.teacher == pytest.approx(evaluate(trained, device="cpu").coco["AP"], abs=1e-6)
    assert all(0 <= swap.transformed <= 1 for swap in found.swaps)
    agreement = analyse_ranks(trained, [run], device="cpu")
    assert any("counts in the student's cells of stride 8" in note for note in agreement.notes)
    assert not any("evaluation size" in note for note in agreement.notes)
    measured = analyse_imitation(trained, [run], device="cpu")
    assert not any("evaluation size" in note for note in measured.notes)


def test_a_run_trains_the_transforms_and_the_swap_test_reads_them(dist2_run, trained, tiny_keys):
    rows = read_rows(RunFolder(dist2_run).losses)
    assert all(float(row[term]) > 0 for row in rows for term in ("dist2_di", "dist2_fi"))
    found = swap_test(trained, dist2_run, device="cpu")
    assert [swap.strategy for swap in found.swaps] == list(ALL2ALL)
    by_name = {swap.strategy: swap for swap in found.swaps}
    assert by_name["N2N"].straight is None  # 24 channels into 16
    assert by_name["B2B"].straight is not None  # both have the same backbone
    assert all(0 <= swap.transformed <= 1 for swap in found.swaps)
    assert found.teacher == evaluate(trained, device="cpu").coco["AP"]
    assert found.student == evaluate(dist2_run / "last.ckpt", device="cpu").coco["AP"]
    assert found.notes == ()
    assert json.loads(json.dumps(found.to_dict()))["swaps"][0]["strategy"] == "N2N"


def test_the_teacher_in_its_own_place_scores_what_it_scores(trained):
    found = swap_test(trained, trained / "best.ckpt", device="cpu")
    assert [swap.strategy for swap in found.swaps] == ["N2N", "B2B"]
    assert found.teacher > 0
    for swap in found.swaps:
        assert swap.straight == found.teacher == found.student
        assert swap.transformed is None


def test_a_swap_through_an_identity_is_the_teacher(trained, tiny, tmp_path):
    """The student is the teacher, its transform changes nothing: the transforms of the checkpoint are what is run."""
    options = {"dist2": {"strategies": "N2N"}}
    keys = tiny | {"schedule.epochs": 1, "batch_size": 8}
    run = understudy.distill(keys, run=tmp_path / "run", teacher=trained, methods=options)
    content = read_checkpoint(run / "last.ckpt")
    best = read_checkpoint(trained / "best.ckpt")["state_dict"]
    content["state_dict"] |= best
    for name, value in content["state_dict"].items():
        if "transforms" in name:
            (torch.nn.init.dirac_ if value.dim() == 4 else torch.nn.init.zeros_)(value)
    write_checkpoint(run / "last.ckpt", content)
    (swap, _) = swap_test(trained, run, device="cpu").swaps
    assert swap.transformed == swap.straight == evaluate(trained, device="cpu").coco["AP"]
    for name, value in content["state_dict"].items():
        if "transforms" in name:
            value.zero_()
    write_checkpoint(run / "last.ckpt", content)
    assert swap_test(trained, run, device="cpu").swaps[0].transformed != swap.straight


def test_the_figure_has_a_bar_for_the_student_the_teacher_and_each_swap():
    both = SwapTest(0.5, 0.3, (Swap("N2N", None, 0.4), Swap("B2B", 0.2, 0.1)))
    assert bars(both) == {"student": [30.0], "teacher": [50.0], "N2N": [40.0], "B2B": [20.0, 10.0]}
    assert legend(both) == ["own maps", "as they are", "through its transforms"]
    plain = SwapTest(0.5, 0.3, (Swap("B2B", 0.2, None),))
    assert bars(plain) == {"student": [30.0], "teacher": [50.0], "B2B": [20.0]}
    assert legend(plain) == ["own maps", "as they are"]


def bars(result: SwapTest) -> dict[str, list[float]]:
    """Return the heights of the bars by the name below them, left to right."""
    (axes,) = result.figures()["swap"].figure.axes
    names = [each.get_text() for each in axes.get_xticklabels()]
    groups = {name: [] for name in names}
    for text in sorted(axes.texts, key=lambda text: text.xy[0]):
        if text.get_text():
            groups[names[round(text.xy[0])]].append(float(text.get_text()))
    return groups


def legend(result: SwapTest) -> list[str]:
    return [text.get_text() for text in result.figures()["swap"].figure.legends[0].get_texts()]


def test_the_command_writes_its_figure_and_numbers(trained, tmp_path, capsys):
    command = ["analyse", "swap", str(trained), str(trained / "best.ckpt"), "-o", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0
    assert str(tmp_path / "swap.png") in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "swap.html",
        "swap.json",
        "swap.png",
        "swap.svg",
    ]
    assert [swap["strategy"] for swap in json.loads((tmp_path / "swap.json").read_text())["swaps"]] == ["N2N", "B2B"]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert "--force" in capsys.readouterr().err


def test_swaps_that_cannot_be_made_are_refused(trained, tiny_keys, dist2_run, confident, capsys):
    with pytest.raises(
        UserError, match=r"No feature map of the student fcos_mob\S+ fits.*24, 24.*16, 16.*holds no transforms"
    ):
        swap_test(confident("retinanet_resnet18"), dist2_run / "best.ckpt")
    with pytest.raises(UserError, match=r"transforms in .*last.ckpt do not fit the teacher fcos_resnet18.*trained for"):
        swap_test(confident("fcos_resnet18"), dist2_run)
    with pytest.raises(SystemExit) as end:
        main(["swap", str(trained), str(dist2_run), "--split", "train"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "through its transforms" in out
    assert "AP on their own maps: teacher" in out
    assert "N2B" in out
