"""Fixtures of all tests: one thread (steadier on shared machines), the real photos if present, and tiny runs."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

import understudy

# One thread in this process and in those that tests start: Lightning sets another for ddp if the variable is absent.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Tests start many processes, each of which would otherwise compile all modules again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests send signals. A shell ignores some of them in a command in the background, and ignored ones stay ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(_number, signal.SIG_DFL)

typer.main.get_command = cache(typer.main.get_command)  # the commands do not change between the calls of tests

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of the slow tests, whole, since their tests share runs.

    At the end, a slow test would leave the other cores idle.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the million objects of the imported packages."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.txt")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and reference values beside the project; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _neither_download_nor_estimate() -> Iterator[None]:
    """No test downloads weights, and runs begin without an estimate, which takes longer than a tiny run's first steps.

    ``tests/training/test_cost.py`` measures it.
    """

    def refuse(url: str, *_: object, **__: object) -> None:
        raise AssertionError(f"a test must not download {url}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
        patch.setattr("understudy.training.defaults.measure_step", lambda *_: None)
        yield


# --- tiny runs, trained once per process: a run takes about a second --------------------------------------------------


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Eight drawn training images and four validation images, 64 pixels wide."""
    from understudy.data.scenes import make_scenes

    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", train=8, val=4, size=64, seed=0)


@pytest.fixture(scope="session")
def tiny(scenes) -> dict[str, Any]:
    """Keys of the smallest run: 3 epochs of 4 steps, rows that go over the end of an epoch, AP above zero."""
    return {
        "data.path": str(scenes),
        "data.shorter_side": 64,
        "data.longer_side": 64,
        "data.colour": 0.0,
        "data.scale": 1.0,
        "data.workers": 0,
        "detector.name": "fcos_mobilenet_v2",
        "detector.width_mult": 0.35,
        "detector.neck_channels": 16,
        "detector.backbone_weights": None,
        "detector.norm": "batch",
        "detector.anchor_scale": None,
        "optimizer.name": "sgd",
        "optimizer.scale_lr": False,
        "optimizer.clip_norm": 1e9,
        "schedule": "1x",
        "schedule.epochs": 3,
        "batch_size": 2,
        "evaluate_every": 1,
        "accelerator": "cpu",
        "log_every": 3,
    }


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """The folder of a finished tiny run; not to be changed."""
    return understudy.train(tiny, run=tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture(scope="session")
def distilled(tiny, trained, tmp_path_factory) -> Path:
    """The folder of a finished tiny run with a teacher; not to be changed."""
    return understudy.distill(tiny, teacher=trained, run=tmp_path_factory.mktemp("runs") / "distilled")


@pytest.fixture(scope="session")
def confident(tiny, scenes, tmp_path_factory) -> Callable[[str], Path]:
    """Makes checkpoints of untrained detectors, by name, that detect objects everywhere: scores of about 0.5."""

    def confident(name: str) -> Path:
        from understudy.checkpoints import FORMAT, STUDENT, build_options, write_checkpoint
        from understudy.config import TrainConfig, load_config
        from understudy.data import open_data
        from understudy.networks import build_network

        data = open_data(scenes)
        config = load_config(TrainConfig, tiny, {"detector.name": name, "run": "none"})
        options = build_options(config, len(data.classes))
        torch.manual_seed(1)
        network = build_network(**options)
        torch.nn.init.normal_(network.head.classification_head.cls_logits.weight, std=0.5)
        torch.nn.init.zeros_(network.head.classification_head.cls_logits.bias)
        meta = {"format": FORMAT, "build": options, "classes": list(data.classes), "AP": None}
        meta |= {"category_ids": list(data.category_ids), "config": config.model_dump(mode="json")}
        file = tmp_path_factory.mktemp("confident") / "best.ckpt"
        weights = {STUDENT + key: value for key, value in network.state_dict().items()}
        write_checkpoint(file, {"understudy": meta, "state_dict": weights})
        return file

    return confident
