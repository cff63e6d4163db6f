"""Tiny training runs that are interrupted, and comparisons of the files that they leave."""

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from understudy.files import read_rows
from understudy.training.averaging import RAW
from understudy.training.checkpointing import KeepCheckpoints
from understudy.training.loss_log import LogLosses


@contextlib.contextmanager
def at_step(step: int, act: Callable[[], object], during: str = "step") -> Generator[None]:
    """Call a function at the end of a step, or before each batch of the evaluation after it."""
    owner, name = (LogLosses, "on_train_batch_end") if during == "step" else (KeepCheckpoints, "stop_evaluation")
    original = getattr(owner, name)

    def hooked(self, trainer, *args):
        if trainer.global_step == step:
            act()
        original(self, trainer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, hooked)
        yield


def send(numbers: Iterable[int]) -> None:
    """Send signals to this process, one after the other."""
    for number in numbers:
        signal.raise_signal(number)


def ctrl_c() -> None:
    send([signal.SIGINT])


def ctrl_c_twice() -> None:
    send([signal.SIGINT, signal.SIGINT])


def crash() -> None:
    raise ZeroDivisionError("a crash")


def saved_step(run: Path) -> int | None:
    """The step of the last checkpoint; None if there is none."""
    file = run / "last.ckpt"
    return torch.load(file, weights_only=True)["global_step"] if file.exists() else None


def contents(run: Path) -> dict:
    """Everything that a run wrote, except durations; tensors as bytes."""
    return _contents(run, (run / "last.ckpt").stat().st_mtime_ns, (run / "result.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)  # many tests compare with the same run
def _contents(run: Path, *times: int) -> dict:
    last, best = (torch.load(run / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": as_bytes(last["state_dict"]),
        "weights in training": as_bytes(last.get(RAW, {})),
        "optimizer": as_bytes(last["optimizer_states"]),
        "schedule": last["lr_schedulers"],
        "best": as_bytes(best["state_dict"]),
        "best of": (best["understudy"]["epoch"], best["understudy"]["step"], best["understudy"]["AP"]),
        "losses": (run / "losses.csv").read_text(),
        "metrics": [{**row, "seconds": ""} for row in read_rows(run / "metrics.csv")],
        "result": {**result, "train_seconds": None},
    }


def as_bytes(value):
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_bytes(item) for key, item in value.items()}
    return [as_bytes(item) for item in value] if isinstance(value, list) else value


def assert_same(run: Path, other: Path) -> None:
    """Two runs wrote the same, to the bit."""
    found, expected = contents(run), contents(other)
    assert [key for key in expected if found[key] != expected[key]] == []


@contextlib.contextmanager
def recorded() -> Generator[list[dict[str, torch.Tensor]]]:
    """Collect the weights in training of a run: the initial ones, and those after each step."""
    found, before, original = [], LogLosses.on_train_start, LogLosses.on_train_batch_end

    def note(engine) -> None:
        found.append({name: value.clone() for name, value in engine.state_dict().items()})

    def started(self, trainer, engine):
        note(engine)
        before(self, trainer, engine)

    def stepped(self, trainer, engine, *args):
        note(engine)
        original(self, trainer, engine, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogLosses, "on_train_start", started)
        patch.setattr(LogLosses, "on_train_batch_end", stepped)
        yield found


def edited_checkpoint(run: Path, folder: Path, edit: Callable[[dict], object]) -> Path:
    """A copy of a finished run that is not finished, with another last checkpoint."""
    shutil.copytree(run, folder)
    (folder / "result.json").unlink()
    content = torch.load(folder / "last.ckpt", weights_only=True)
    edit(content)
    torch.save(content, folder / "last.ckpt")
    return folder
