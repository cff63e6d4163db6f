"""A detector that starts with the weights of a run or checkpoint, as far as they fit."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import at_step, ctrl_c

import understudy
from understudy.checkpoints import STUDENT, Checkpoint, read_checkpoint
from understudy.detectors import Detector, build_detector
from understudy.errors import UserError
from understudy.training.fingerprints import weights_digest
from understudy.training.folder import RunFolder
from understudy.training.warm_start import has_same_backbone, warm_start

CLASSES = ("circle", "square", "star")


def small(family: str, seed: int, classes: int = 3, **options: Any) -> Detector:
    torch.manual_seed(seed)
    return build_detector(f"{family}_resnet18", classes, **{"neck_channels": 16, "width_mult": 0.125, **options})


def checkpoint(detector: Detector, classes=CLASSES) -> Checkpoint:
    return Checkpoint(detector, tuple(classes), {}, {}, Path("old.ckpt"))


def weights(detector: Detector) -> dict[str, torch.Tensor]:
    return copy.deepcopy(detector.network.state_dict())


def test_the_same_detector_takes_everything():
    student, source = small("fcos", 1), small("fcos", 2, norm="frozen")
    found = warm_start(student, checkpoint(source), CLASSES)
    assert (found.own, found.by_class, found.remarks) == ((), (), ())
    after = weights(student)
    assert all(torch.equal(after[name], value) for name, value in weights(source).items())
    assert (
        found.note
        == f"init: {len(found.taken)} of the {len(found.taken)} tensors of the detector are those of old.ckpt"
    )


@pytest.mark.parametrize("family", ["retinanet", "gfl", "faster_rcnn"])
def test_of_other_classes_those_of_the_same_name_are_taken(family):
    """Every row of every layer of class scores, by a loop over anchors and classes."""
    names = ("star", "moon", "Circle", "cross")
    student, source = small(family, 1), small(family, 2, 4)
    before, theirs = weights(student), weights(source)
    found = warm_start(student, checkpoint(source, names), CLASSES)
    after, of_source = weights(student), {0: 2, 2: 0}
    layers = {
        "retinanet": {"head.classification_head.cls_logits": (9, 1)},
        "gfl": {"head.classification_head.cls_logits": (1, 1)},
        "faster_rcnn": {"roi_heads.box_predictor.cls_score": (1, 1), "roi_heads.box_predictor.bbox_pred": (1, 4)},
    }[family]
    extra = int(family == "faster_rcnn")
    for layer, (anchors, rows) in layers.items():
        for part in ("weight", "bias"):
            name = f"{layer}.{part}"
            assert len(after[name]) == anchors * (3 + extra) * rows
            for anchor in range(anchors):
                for label in range(3 + extra):
                    for row in range(rows):
                        place = (anchor * (3 + extra) + label) * rows + row
                        known = 0 if extra and label == 0 else of_source.get(label - extra, -2) + extra
                        other = (anchor * (4 + extra) + known) * rows + row
                        expected = before[name][place] if known < 0 or label - extra == 1 else theirs[name][other]
                        assert torch.equal(after[name][place], expected)
    assert found.classes == ("circle", "star")
    assert found.own == ()
    assert {name.rpartition(".")[0] for name in found.by_class} == set(layers)
    assert f"{2 * len(layers)} have its values for the classes circle, star" in found.note


def test_another_detector_of_the_same_backbone_gives_its_backbone():
    student, source = small("retinanet", 1), small("faster_rcnn", 2)
    found = warm_start(student, checkpoint(source), CLASSES)
    assert found.taken
    assert all(name.startswith("backbone.") for name in found.taken)
    assert "not taken: " in found.note
    assert "of head.classification_head" in found.note


def test_a_checkpoint_that_fits_nowhere_is_refused():
    other = small("fcos", 2, width_mult=0.25, neck_channels=8)
    with pytest.raises(UserError, match=r"init=old.ckpt: no layer of its detector, fcos_resnet18, fits fcos_resnet18"):
        warm_start(small("fcos", 1), checkpoint(other), CLASSES)


def test_other_pixels_are_remarked_on():
    found = warm_start(small("fcos", 1), checkpoint(small("fcos", 2, image_mean=[0.5] * 3)), CLASSES)
    assert found.note.endswith("; it was trained with another image_mean: set detector.image_mean='[0.5, 0.5, 0.5]'")


def test_a_run_starts_with_the_average_of_another_and_a_resumed_one_needs_it_no_more(tiny, trained, tmp_path, capsys):
    source = shutil.copytree(trained, tmp_path / "source")
    keys = {"optimizer.lr": 1e-9, "optimizer.weight_decay": 0.0, "ema": "off", "init": source}
    keys |= {"detector.norm": "batch", "detector.backbone_weights": "IMAGENET1K_V1"}  # which this width does not have
    run = tmp_path / "run"
    with at_step(2, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.train(tiny, run=run, **keys)
    assert f"tensors of the detector are those of {source / 'best.ckpt'}" in capsys.readouterr().err
    facts = json.loads(RunFolder(run).environment.read_text())["init"]
    theirs = understudy.load_checkpoint(source)
    assert facts["weights"] == weights_digest(theirs.detector)
    assert (facts["own"], facts["by_class"]) == ([], [])
    shutil.rmtree(source)
    understudy.resume(run)
    assert "init:" not in capsys.readouterr().err
    assert json.loads(RunFolder(run).environment.read_text())["init"] == facts
    last = read_checkpoint(run / "last.ckpt")["state_dict"]
    name = "head.classification_head.cls_logits.weight"
    torch.testing.assert_close(last[STUDENT + name], theirs.detector.network.state_dict()[name], rtol=0, atol=1e-5)


def test_the_backbone_decides_whether_other_weights_are_needed():
    source = Checkpoint(small("fcos", 1), CLASSES, {}, {"build": {"name": "fcos_resnet18", "width_mult": 0.5}}, Path())
    same = {"name": "faster_rcnn_resnet18", "width_mult": 0.5, "settings": {}}
    assert has_same_backbone(source, same)
    assert not has_same_backbone(source, same | {"width_mult": 1.0})
    assert not has_same_backbone(source, same | {"name": "faster_rcnn_resnet34"})
