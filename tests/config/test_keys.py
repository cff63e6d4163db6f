import json
from pathlib import Path

import pytest

from understudy.config import DistillConfig, TrainConfig, load_config

NEEDED = ["run=runs/a", "data=photos"]


def option(*arguments: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*NEEDED, *arguments])


def test_defaults():
    config = option()
    assert (config.run, config.data.path) == (Path("runs/a"), Path("photos"))
    assert (config.data.shorter_side, config.data.longer_side, config.data.flip) == ([800], 1333, 0.5)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", 1e-3, 0.05)
    assert (config.schedule.epochs, config.batch_size, config.precision) == (12, 16, "32")
    assert load_config(DistillConfig, None, [*NEEDED, "teacher=t"]).methods == {"frs": {}}


def test_what_depends_on_another_key_is_filled_in():
    assert option("optimizer=sgd").optimizer.lr is None  # see tests/training/test_assembly.py
    assert option("optimizer=sgd").optimizer.weight_decay == 1e-4
    assert option("optimizer=adamw", "optimizer.lr=1e-3").optimizer.lr == 1e-3
    assert option("optimizer.lr=null").optimizer.lr == 1e-3
    assert [option(f"schedule={name}").schedule.epochs for name in ("1x", "2x", "cosine")] == [12, 24, 12]
    assert option().detector.norm == "batch"
    assert option("detector.backbone_weights=IMAGENET1K_V1").detector.norm == "frozen"
    assert option("detector.backbone_weights=w.pth", "detector.norm=batch").detector.norm == "batch"


def test_finished_configs_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        option().seed = 3


def test_schema_takes_the_nulls_that_are_filled_in():
    schema = json.loads(json.dumps(DistillConfig.model_json_schema()))
    kinds = schema["$defs"]["OptimizerConfig"]["properties"]["lr"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["number", "null"]
    assert set(schema["required"]) == {"run", "data", "teacher"}
