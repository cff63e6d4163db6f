"""What a run would choose: as a table, as JSON, as a config file, and without any trace."""

import json
from pathlib import Path
from typing import Any

import pytest

import understudy
from understudy.cli import main
from understudy.config import LEFT_OPEN, DistillConfig, TrainConfig, load_config, open_keys
from understudy.errors import UserError
from understudy.training.cost import measure_step
from understudy.training.suggestion import Suggestion


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    """A suggestion has an estimate."""
    monkeypatch.setattr("understudy.training.defaults.measure_step", measure_step)


@pytest.fixture
def small(tiny) -> list[str]:
    """Keys of a small detector on a CPU."""
    return [
        f"{key}={tiny[key]}"
        for key in ("detector.name", "detector.width_mult", "detector.neck_channels", "accelerator")
    ]


def run(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["suggest", *arguments])
    return int(stop.value.code or 0), capsys.readouterr().out


def test_a_row_for_each_key_with_its_reason(scenes, small, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out = run(capsys, str(scenes), *small, "batch_size=4")
    assert code == 0
    assert "fcos_mobilenet_v2 on " in out
    assert "data.shorter_side=[64] " in out
    assert "batch_size=4 given" in " ".join(out.split())
    assert "detector.backbone_weights=null random initialisation, torchvision" in " ".join(out.split())
    assert "Estimate: about " in out
    assert "anchor_scale" not in out, "an FCOS has no anchors"
    assert list(tmp_path.iterdir()) == []


def test_the_data_set_is_also_taken_from_a_key_or_a_config_file(scenes, small, capsys, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{path: {scenes}}}")
    outputs = [run(capsys, *words, *small) for words in ([str(scenes)], ["-c", str(file)], [f"data={scenes}"])]
    assert [code for code, _ in outputs] == [0, 0, 0]
    assert len({out.partition("Estimate")[0] for _, out in outputs}) == 1
    with pytest.raises(SystemExit):
        main(["suggest", "batch_size=4"])
    assert "data.path: missing" in capsys.readouterr().err


def test_json_and_a_config_file_that_a_run_takes(scenes, small, trained, capsys, tmp_path):
    file = tmp_path / "student.yaml"
    code, out = run(capsys, str(scenes), *small, f"teacher={trained}", "-o", str(file), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["chosen"]["schedule.epochs"] == {"value": 1000, "reason": "at most 1,000"}
    assert found["cost"]["steps"] == 1000
    assert found["config"]["batch_size"] == 8
    assert "run" not in found["config"]
    config = load_config(DistillConfig, file, ["run=runs/a"])
    assert open_keys(config) == []
    assert (config.data.path, config.teacher, config.batch_size) == (Path(scenes), trained, 8)
    assert "  epochs: 1000  # at most 1,000\n" in file.read_text()
    assert run(capsys, str(scenes), *small, "-o", str(file))[0] == 2


def test_from_python_it_is_what_a_run_would_be(scenes, tiny):
    keys: dict[str, Any] = {key: value for key, value in tiny.items() if key not in LEFT_OPEN}
    found = understudy.suggest(keys)
    assert isinstance(found.config, TrainConfig)
    assert open_keys(found.config) == []
    assert found.cost is not None
    assert found.reasons["evaluate_every"] == "at most 20 evaluations"
    with pytest.raises(UserError, match="No data set at"):
        understudy.suggest(keys, **{"data.path": "nowhere"})


def test_the_file_is_the_config_that_was_described(scenes, tiny, tmp_path):
    """With keys that were given, nulls that were given, and a value that is the default but not the recipe's."""
    given: dict[str, Any] = {
        "data.path": scenes,
        "data.limit": 5,
        "detector.name": "retinanet_mobilenet_v2",
        "detector.width_mult": tiny["detector.width_mult"],
        "detector.neck_channels": tiny["detector.neck_channels"],
        "detector.head_norm": None,
        "detector.anchor_scale": None,
        "optimizer.name": "sgd",
        "precision": "bf16",
        "accelerator": "cpu",
    }
    found = understudy.suggest(given)
    assert found.reasons["detector.head_norm"] == found.reasons["detector.anchor_scale"] == "given"
    file = tmp_path / "student.yaml"
    file.write_text(found.to_yaml())
    assert load_config(TrainConfig, file, ["run=run"]) == found.config
    assert "momentum" not in found.to_yaml(), "keys with their defaults are left out"

    keys = {"recipe": "frs-retinanet-r50", "run": "run", "data.path": scenes, "teacher": "t", "data.skip_empty": False}
    config = load_config(DistillConfig, None, keys)
    file.write_text(Suggestion(config, {}, None, "").to_yaml())
    assert load_config(DistillConfig, file, ["run=run"]) == config


def test_a_batch_of_more_images_than_there_are_is_refused_before_anything_is_drawn(scenes, small, capsys, monkeypatch):
    monkeypatch.setattr("understudy.training.defaults.measure_step", None)
    for size in (9, 10**9):
        with pytest.raises(SystemExit) as end:
            main(["suggest", str(scenes), *small, f"batch_size={size}"])
        assert end.value.code == 2
        expected = f"8 images in split 'train', fewer than one batch of {size}. Lower batch_size."
        assert expected in capsys.readouterr().err
