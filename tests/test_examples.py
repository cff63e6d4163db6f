"""The examples run as they stand."""

import importlib.util
from pathlib import Path

import pytest
import torch
from arguments import arguments_of
from torchvision.models.detection import RetinaNet

from understudy.cli import main
from understudy.files import read_rows

EXAMPLES = Path(__file__).parents[1] / "examples"


def lines_of(file: Path) -> int:
    """Lines of code: without blank ones and the docstring at the top."""
    code = file.read_text().split('"""', 2)[2]
    return sum(bool(line.strip()) for line in code.splitlines())


def test_a_loop_of_ones_own(capsys):
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLES / "own_loop.py")
    own_loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own_loop)
    torch.manual_seed(0)
    network = own_loop.main(steps=2)
    assert type(network) is RetinaNet  # what is taken home is torchvision's own
    first, second = capsys.readouterr().out.splitlines()
    for term in ("classification", "bbox_regression", "frs_feature", "frs_class", "pkd_feature"):
        assert f" {term}=" in first
        assert f" {term}=" in second
    assert "nan" not in first + second
    assert lines_of(EXAMPLES / "own_loop.py") <= 40


def test_a_method_of_ones_own_from_the_command_line(tiny, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    keys = {**tiny, "run": tmp_path / "run", "teacher": trained, "schedule.epochs": 1, "log_every": 1}
    options = ["--method", "own_method:ScoredFeatures", "methods.own_method:ScoredFeatures.power=1"]
    distill = ["distill", *arguments_of(keys), *options]
    for arguments in (distill, ["methods", "own_method:ScoredFeatures"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code
    terms = [row["scored_feature"] for row in read_rows(tmp_path / "run" / "losses.csv")]
    assert len(terms) == 4
    assert all(float(term) > 0 for term in terms)
    assert "    power: 1.0" in (tmp_path / "run" / "config.yaml").read_text()
    listing = capsys.readouterr().out
    assert "methods.own_method:ScoredFeatures.power=0.5" in listing
    assert "faster_rcnn: feature_weight=1" in listing  # a weight for every family
    assert lines_of(EXAMPLES / "own_method.py") <= 30
