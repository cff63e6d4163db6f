"""The factors of biases: which parameters have them, in an optimizer and in a run."""

import pytest
import torch
from torch import nn
from training_runs import assert_same, at_step, ctrl_c

import understudy
from understudy.config import OptimizerConfig
from understudy.files import read_rows
from understudy.training.optimizing import parameter_groups


def module() -> nn.Module:
    """Convolutions with normalisations of every kind, one of them frozen, and a scale of its own."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    layers.append(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    layers.scales = nn.Parameter(torch.ones(3))
    layers[2].requires_grad_(False)
    return layers


def names(layers: nn.Module, group: dict) -> list[str]:
    of = {id(parameter): name for name, parameter in layers.named_parameters()}
    return [of[id(parameter)] for parameter in group["params"]]


def test_biases_of_normalisation_layers_have_no_factor():
    layers = module()
    options = OptimizerConfig(bias_lr_mult=2, bias_decay_mult=0.5, weight_decay=0.1)
    others, biases = parameter_groups(layers, options, 0.01)
    assert names(layers, biases) == ["0.bias", "4.0.bias"]
    expected = "scales 0.weight 1.weight 1.bias 3.weight 3.bias 4.0.weight 4.1.weight 4.1.bias"
    assert names(layers, others) == expected.split()
    assert (biases["lr"], biases["weight_decay"]) == (0.02, 0.05)
    assert set(others) == {"params"}


def test_without_factors_there_is_one_group_as_in_older_checkpoints():
    layers = module()
    (group,) = parameter_groups(layers, OptimizerConfig(), 0.01)
    assert names(layers, group) == [name for name, each in layers.named_parameters() if each.requires_grad]


def test_a_run_with_factors_trains_biases_differently_and_is_resumed_to_the_bit(tiny, tmp_path):
    keys = {**tiny, "optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.weight_decay": 0.1}
    keys |= {"schedule.epochs": 3, "schedule.warmup": "constant", "schedule.warmup_factor": 0.5, "log_every": 1}
    keys |= {"schedule.warmup_steps": 1}
    keys |= {"optimizer.bias_lr_mult": 2.0, "optimizer.bias_decay_mult": 0.0}
    whole = understudy.train(keys, run=tmp_path / "whole")
    last = torch.load(whole / "last.ckpt", weights_only=True)
    others, biases = last["optimizer_states"][0]["param_groups"]
    assert last["lr_schedulers"][0]["base_lrs"] == pytest.approx([0.01, 0.02])
    assert (others["weight_decay"], biases["weight_decay"]) == (0.1, 0.0)
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.train(keys, run=tmp_path / "run")
    assert_same(understudy.resume(tmp_path / "run"), whole)
    assert [float(row["lr"]) for row in read_rows(whole / "losses.csv")[:3]] == [0.005, 0.01, 0.01]
