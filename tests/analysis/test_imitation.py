"""Feature and prediction differences: the linear map, both differences and their correlation against slow loops."""

import json

import numpy as np
import pytest
import torch

from understudy.analysis.correlation import pearson
from understudy.analysis.imitation import Imitation, LinearMap, halves, prediction_difference
from understudy.cli import main
from understudy.errors import UserError


def test_a_linear_relation_is_found_and_its_residual_is_zero():
    random = torch.Generator().manual_seed(0)
    features, weight = torch.randn(60, 5, generator=random), torch.randn(5, 3, generator=random)
    fitted = LinearMap()
    for part in features.split(20):
        fitted.add(part, part @ weight + 2)
    assert (fitted(features) - (features @ weight + 2)).abs().max() < 1e-4
    assert not fitted.underdetermined
    constant = LinearMap()
    constant.add(torch.ones(4, 2), torch.full((4, 1), 3.0))
    assert constant(torch.ones(1, 2)).item() == pytest.approx(3, abs=1e-3)
    constant = LinearMap()
    constant.add(torch.ones(2, 2), torch.ones(2, 1))
    assert constant.underdetermined  # two weights and a bias from two cells


def test_a_fit_is_that_of_least_squares():
    random = torch.Generator().manual_seed(1)
    features, targets = torch.randn(80, 4, generator=random), torch.randn(80, 2, generator=random)
    fitted = LinearMap()
    fitted.add(features, targets)
    with_bias = np.concatenate([features.numpy(), np.ones((80, 1))], axis=1)
    weight, *_ = np.linalg.lstsq(with_bias, targets.numpy(), rcond=None)
    np.testing.assert_allclose(fitted(features).numpy(), with_bias @ weight, atol=1e-4)


def test_prediction_difference_of_each_cell():
    student, teacher = torch.zeros(1, 1, 2, 2, 3), torch.zeros(1, 1, 2, 2, 3)
    student[0, 0, 1, 0] = torch.tensor([1.0, 2.0, 0.0])
    assert prediction_difference(student, teacher)[0, 0].tolist() == [0, pytest.approx(5 / 6)]


def test_numbers_are_those_of_a_loop_over_cells(model, batch, data, records):
    teacher, student = model("teacher", neck_channels=48), model("student", noise=0.05)
    found = Imitation(teacher, [student], data, fitted=2)
    outputs = records(teacher, student)
    found.add(batch, outputs)
    found.add(batch, outputs)
    result = found.result()
    assert (result.fitted, result.images) == (2, 2)
    own, theirs = outputs["student"], outputs["teacher"]
    for level, stride in enumerate(student.detector.spec.strides[:2]):
        rows = []
        for image, (height, width) in enumerate(batch.image_sizes):
            for row in range(-(-height // stride)):
                for column in range(-(-width // stride)):
                    logits = (
                        own.class_logits[level][image, row, column] - theirs.class_logits[level][image, row, column]
                    )
                    features = [outputs[name].features[level][image, :, row, column] for name in ("student", "teacher")]
                    rows.append((*[each.numpy() for each in features], float((logits**2).mean())))
        x = np.array([np.append(row[0], 1) for row in rows], dtype=float)
        y = np.array([row[1] for row in rows], dtype=float)
        weight = np.linalg.lstsq(x.T @ x + 1e-6 * np.diag(x.T @ x).mean() * np.eye(x.shape[1]), x.T @ y, rcond=None)[0]
        feature = ((x @ weight - y) ** 2).mean(1)
        one = result.rows[level]
        assert (one.student, one.stride, one.cells) == ("student", stride, len(rows))
        assert one.feature == pytest.approx(feature.mean(), rel=1e-3)
        assert one.prediction == pytest.approx(np.mean([row[2] for row in rows]), rel=1e-4)
        assert one.pearson == pytest.approx(pearson(feature, np.array([row[2] for row in rows])), abs=1e-3)
    figures = result.figures()
    assert 128 in result.underdetermined
    assert "Too few cells to fit the map at stride" in figures["imitation"].caption
    assert "to teacher in the cells of 2 images (student)" in figures["imitation"].caption
    assert len(figures["imitation_cells"].figure.axes) == len(student.detector.spec.strides)
    assert json.loads(json.dumps(result.to_dict()))["rows"][0]["student"] == "student"


def test_halves_are_both_spread_over_the_images(data):
    from dataclasses import replace

    long = replace(data, records=[*data.records, *data.records])
    assert [record.image_id for record in halves(long).records] == [2, 2, 1, 1]


def test_one_image_is_too_few(trained, distilled, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", "imitation", str(trained), str(distilled), "--images", "1"])
    assert end.value.code == 2
    assert "at least 2 images, got 1" in capsys.readouterr().err


def test_students_without_a_common_class_are_refused(model, data):
    with pytest.raises(UserError, match="no class of the same name"):
        Imitation(model("teacher"), [model("student", classes=("x", "y", "z"))], data, fitted=1)


def test_the_command(trained, distilled, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", "imitation", str(trained), str(distilled), "--json"])
    assert end.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["fitted"], result["images"]) == (2, 2)
    assert {row["stride"] for row in result["rows"]} == {8, 16, 32, 64, 128}
