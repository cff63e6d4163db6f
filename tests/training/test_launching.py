"""Ranks are those of the processes that a config asks for; what is left in the environment has no effect."""

import json

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from training_runs import assert_same, at_step, ctrl_c

import understudy
from understudy.config import TrainConfig, load_config
from understudy.errors import UserError
from understudy.training.launching import is_first_process
from understudy.training.trainer import make_trainer

VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
    "SLURM_JOB_NAME",
)
STRAY = {"RANK": "3", "LOCAL_RANK": "1", "NODE_RANK": "1", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "WORLD_SIZE": "4"}
STRAY |= {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "foo", "SLURM_LOCALID": "bar"}
BY_HAND = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
BY_TORCHRUN = BY_HAND | {"RANK": "1", "TORCHELASTIC_RUN_ID": "x"}
BY_SLURM = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
BY_SLURM |= {"SLURM_NODEID": "0"}


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Makes a trainer in an environment with some variables; afterwards this process is the first one again."""

    def trainer(variables=(), **keys):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in dict(variables).items():
            monkeypatch.setenv(name, value)
        keys = {"data": "photos", "run": tmp_path / "run", "accelerator": "cpu", **keys}
        return make_trainer(load_config(TrainConfig, keys), tmp_path)

    yield trainer
    rank_zero_only.rank = 0


@pytest.mark.parametrize(
    ("variables", "keys", "rank", "size"),
    [
        ({}, {}, 0, 1),
        (STRAY, {}, 0, 1),
        (STRAY, {"devices": "auto"}, 0, 1),
        (STRAY, {"strategy": "ddp"}, 0, 1),
        ({"LOCAL_RANK": "1", "RANK": "1"}, {"devices": 2}, 0, 2),
        ({"NODE_RANK": "1"}, {"devices": 2}, 0, 2),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "3"}, {"devices": 2}, 0, 2),
        (BY_HAND, {"devices": 2}, 1, 2),
        ({"NODE_RANK": "1"}, {"devices": 2, "num_nodes": 2}, 2, 4),
        (BY_TORCHRUN, {"devices": 2}, 1, 2),
        (BY_SLURM, {"devices": 2}, 1, 2),
    ],
)
def test_the_rank_is_that_of_the_trainer(variables, keys, rank, size, trainer):
    made = trainer(variables, **keys)
    assert (made.global_rank, made.world_size) == (rank, size)
    assert rank_zero_only.rank == rank
    assert is_first_process() is (rank == 0)


def test_launchers_keep_their_own_environment(trainer):
    by_torchrun = trainer(BY_TORCHRUN, devices=2).strategy.cluster_environment
    assert isinstance(by_torchrun, TorchElasticEnvironment)
    assert isinstance(trainer(BY_SLURM, devices=2).strategy.cluster_environment, SLURMEnvironment)


@pytest.mark.parametrize(
    ("variables", "keys", "message"),
    [
        (BY_TORCHRUN | {"WORLD_SIZE": "3"}, {"devices": 2}, "does not match the world size"),
        (BY_HAND | {"LOCAL_RANK": "foo"}, {"devices": 2}, "invalid literal for int"),
        (BY_SLURM | {"SLURM_NTASKS_PER_NODE": "1"}, {"devices": 2}, "number of tasks per node"),
    ],
)
def test_a_launcher_that_contradicts_the_config(variables, keys, message, trainer):
    with pytest.raises(UserError, match=f"devices=2 .*not available.*{message}"):
        trainer(variables, **keys)


def test_stray_variables_change_no_run(tiny, trained, tmp_path, monkeypatch):
    for name, value in STRAY.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="is not empty"):
        understudy.train(tiny, run=trained)
    run = tmp_path / "run"
    with at_step(5, ctrl_c), pytest.raises(KeyboardInterrupt):
        understudy.train(tiny, run=run, strategy="ddp")
    assert (run / "config.yaml").is_file()
    assert json.loads((run / "environment.json").read_text())["python"]
    assert_same(understudy.resume(run), trained)
