"""The examples run as they stand."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import RetinaNet

from understudy.runs import read_rows

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


@pytest.mark.parametrize("command", ["distill", "methods"])
def test_a_method_of_ones_own_from_the_command_line(command, tiny, trained, tmp_path):
    keys = {**tiny, "run": tmp_path / "run", "teacher": trained, "schedule.epochs": 1, "log_every": 1}
    arguments = {
        "distill": [
            *(f"{key}={value}" for key, value in keys.items()),
            *("--method", "own_method:ScoredFeatures", "methods.own_method:ScoredFeatures.power=1"),
        ],
        "methods": ["own_method:ScoredFeatures"],
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("understudy"), command, *arguments[command]],
        cwd=EXAMPLES,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if command == "methods":
        assert "methods.own_method:ScoredFeatures.power=0.5" in done.stdout
        assert "others: none, give feature_weight=..." in done.stdout
    else:
        terms = [row["scored_feature"] for row in read_rows(tmp_path / "run" / "losses.csv")]
        assert len(terms) == 4
        assert all(float(term) > 0 for term in terms)
        assert "    power: 1.0" in (tmp_path / "run" / "config.yaml").read_text()
    assert lines_of(EXAMPLES / "own_method.py") <= 30
