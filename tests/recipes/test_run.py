"""A recipe that runs: the plain student and the distilled one on tiny scenes, from the command line."""

import pytest

from understudy.cli import main
from understudy.config import DistillConfig, load_config


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code


@pytest.mark.slow
def test_a_recipe_runs_at_a_tiny_size(tmp_path, scenes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [
        *(f"data={scenes}", "data.shorter_side=64", "data.longer_side=64", "data.workers=0", "batch_size=2"),
        *("detector.name=retinanet_resnet18", "detector.neck_channels=16", "detector.width_mult=0.25"),
        *("detector.backbone_weights=null", "detector.norm=batch", "detector.frozen_stages=0"),
        *("schedule.epochs=1", "accelerator=cpu"),
    ]
    command("train", "--recipe", "frs-retinanet-r50", *small, "run=teacher")
    command("distill", "--recipe", "frs-retinanet-r50", *small, "teacher=teacher", "run=student")
    config = load_config(DistillConfig, tmp_path / "student" / "config.yaml")
    assert config.recipe == "frs-retinanet-r50"
    assert config.methods["frs"]["class_weight"] == 0.02
    header = (tmp_path / "student" / "losses.csv").read_text().splitlines()[0]
    assert "frs_feature" in header
