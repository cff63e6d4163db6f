import json
from pathlib import Path

import pytest

from understudy.config import LEFT_OPEN, DistillConfig, TrainConfig, filled_from, load_config, open_keys
from understudy.config.methods import DEFAULT_METHODS
from understudy.errors import UserError

NEEDED = ["run=runs/a", "data=photos"]


def option(*arguments: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*NEEDED, *arguments])


def test_defaults():
    config = option()
    assert (config.run, config.data.path) == (Path("runs/a"), Path("photos"))
    assert (config.data.shorter_side, config.data.longer_side, config.data.flip) == (None, None, 0.5)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", 2e-3, 0.05)
    assert (config.schedule.epochs, config.batch_size, config.precision) == (None, None, "32")
    assert load_config(DistillConfig, None, [*NEEDED, "teacher=t"]).methods == DEFAULT_METHODS


def test_what_depends_on_another_key_is_filled_in():
    assert option("optimizer=sgd").optimizer.lr is None  # see tests/training/test_assembly.py
    assert option("optimizer=sgd").optimizer.weight_decay == 1e-4
    assert option("optimizer=adamw", "optimizer.lr=1e-3").optimizer.lr == 1e-3
    assert option("optimizer.lr=null").optimizer.lr == 2e-3
    assert [option(f"schedule={name}").schedule.epochs for name in ("1x", "2x", "cosine")] == [12, 24, None]


def test_what_is_left_open_is_taken_from_another_config():
    plain, other = option(), option("batch_size=4", "data.shorter_side=320", "detector.anchor_scale=null")
    assert open_keys(plain) == [key for key in LEFT_OPEN if key not in ("data.unlabelled_batch", "teacher_scale")]
    assert set(open_keys(plain)) - set(open_keys(other)) == {
        "batch_size",
        "data.shorter_side",
        "detector.anchor_scale",
    }
    filled = filled_from(plain, other)
    assert (filled.batch_size, filled.data.shorter_side, filled.detector.anchor_scale) == (4, [320], None)
    assert filled_from(other, plain) == other
    assert filled_from(plain, other, ["batch_size"]).data.shorter_side is None
    distilled = load_config(DistillConfig, {"data": "photos", "run": "run", "teacher": "teacher"})
    assert "teacher_scale" in open_keys(distilled)
    assert filled_from(distilled, other).teacher_scale is None  # of which a plain run has none
    unlabelled = option("data.unlabelled=more")
    assert "data.unlabelled_batch" in open_keys(unlabelled)


def test_finished_configs_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        option().seed = 3


def test_schema_takes_the_nulls_that_are_filled_in():
    schema = json.loads(json.dumps(DistillConfig.model_json_schema()))
    kinds = schema["$defs"]["OptimizerConfig"]["properties"]["lr"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["number", "null"]
    assert set(schema["required"]) == {"run", "data", "teacher"}


OFF = ("teacher_cache", "ema", "balance", "pseudo_labels")


@pytest.mark.parametrize("word", ["false", "no", "off"])
def test_words_for_false_turn_a_key_off(word):
    found = load_config(DistillConfig, None, [*NEEDED, "teacher=t", *(f"{key}={word}" for key in OFF)])
    assert [getattr(found, key) for key in OFF] == ["off"] * len(OFF)


@pytest.mark.parametrize("word", ["true", "on", "yes"])
def test_words_for_true_are_no_value_of_a_key_with_off(word):
    for key in OFF:
        with pytest.raises(UserError, match=rf"{key}: expected .*off.* got {word}"):
            load_config(DistillConfig, None, [*NEEDED, "teacher=t", f"{key}={word}"])
