"""Configs in mmdet's checkpoints are parsed and never executed."""

import pytest

from understudy.checkpoints.mmdet_config import look_up, parse_config


def test_a_config_is_parsed_and_not_executed(tmp_path):
    proof = tmp_path / "proof"
    config = parse_config(
        "import os\n"
        f"os.system('touch {proof}')\n"
        f"evil = open({str(proof)!r}, 'w')\n"
        "scale = (1333, 800)\n"
        "steps = [dict(type='Resize', scale=scale), dict(type='Flip')]\n"
        "model = dict(\n"
        "    type='GFL', bad=float('1'), numbers=[-1, 1e8], nested={'a': None, 'b': True}, **other)\n"
        "value = [1, unknown]\n"
    )
    assert not proof.exists()
    assert config == {
        "scale": (1333, 800),
        "steps": [{"type": "Resize", "scale": (1333, 800)}, {"type": "Flip"}],
        "model": {"type": "GFL", "numbers": [-1, 1e8], "nested": {"a": None, "b": True}},
    }
    assert look_up(config, "model.nested.b") is True
    assert look_up(config, "model.type.b", 3) == 3


@pytest.mark.parametrize("text", ["a = (", "(" * 5000, 5, None, "a\0b", b"a = 1"])
def test_other_texts_and_values_are_no_config(text):
    assert parse_config(text) is None
