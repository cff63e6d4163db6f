"""Devices, precisions and strategies that are not available are refused in words."""

import pytest
import torch

import understudy
from understudy.config import TrainConfig, load_config
from understudy.errors import UserError
from understudy.training.trainer import _has_launcher, make_trainer

REFUSED = [
    ({"precision": "16"}, r"precision=16 needs a GPU.*Use precision=32 or precision=bf16"),
    ({"accelerator": "warp"}, r"accelerator=warp .* is not available on this machine"),
    ({"accelerator": "tpu"}, r"accelerator=tpu .* is not available on this machine"),
    ({"devices": 3, "accelerator": "gpu"}, r"accelerator=gpu devices=3 .* is not available on this machine"),
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


@pytest.mark.parametrize("variable", [None, "MASTER_ADDR"])
def test_several_machines_need_a_launcher(tiny, tmp_path, monkeypatch, variable):
    for name in ("SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "LSB_JOBID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "first")
        assert _has_launcher()
    else:
        with pytest.raises(UserError, match="num_nodes=2 needs a launcher"):
            understudy.train(tiny, run=tmp_path / "run", num_nodes=2)
        assert not (tmp_path / "run").exists()
