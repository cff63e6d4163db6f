"""Devices, precisions and strategies that are not available are refused in words."""

import pytest
import torch

from understudy.config import TrainConfig, load_config
from understudy.errors import UserError
from understudy.training.trainer import make_trainer

REFUSED = [
    ({"precision": "16"}, r"precision=16 needs a GPU.*Use precision=32 or precision=bf16"),
    ({"accelerator": "warp"}, r"accelerator=warp .* is not available on this machine"),
    ({"strategy": "warp"}, r"strategy=warp .* is not available on this machine"),
    ({"detector.norm": "sync", "devices": 2, "strategy": "ddp"}, r"norm=sync needs GPUs.*Use detector.norm=batch"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_what_is_not_available_is_refused(keys, message, tmp_path):
    config = load_config(TrainConfig, {"data": "photos", "run": tmp_path / "run", "accelerator": "cpu"} | keys)
    with pytest.raises(UserError, match=message):
        make_trainer(config, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    config = load_config(TrainConfig, {"data": "photos", "run": tmp_path / "run", "accelerator": "gpu"})
    with pytest.raises(UserError, match=r"accelerator=gpu .* is not available on this machine"):
        make_trainer(config, tmp_path)
