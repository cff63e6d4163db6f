"""The race: turns in a rotating order, the numbers of a round, and what a runtime gets."""

import fake_files
import numpy as np
import pytest
import torch

from understudy.data import Batch
from understudy.evaluation import speed
from understudy.evaluation.runtimes import TorchRuntime
from understudy.evaluation.speed import Racer, Speed, call_of, race


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(speed, "PAUSE", 0)


def batch(height: int = 20, width: int = 30) -> Batch:
    image = torch.full((1, 3, 32, 32), 0.5)
    return Batch(image, [{}], [(height, width)], [(height, width)], [0], [True])


def test_all_take_turns_and_each_round_begins_with_the_next_one():
    order = []
    racers = [Racer([lambda name=name: order.append(name)]) for name in "abc"]
    race(racers, rounds=4)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"  # the first is not counted


def test_a_race_ends_after_some_time_but_not_before_three_rounds():
    calls = []
    (result,) = race([Racer([lambda: calls.append(1)])], rounds=100, seconds=0)
    assert result.rounds == 3
    assert len(calls) == 4


def test_the_rate_is_the_median_of_rounds_and_times_are_of_calls():
    racer = Racer([], images=2, rounds=[[0.1, 0.3], [0.2, 0.2], [1.0, 3.0]])
    assert racer.speed.images_per_second == pytest.approx(10)
    assert racer.speed.rounds == 3
    assert sorted(racer.speed.seconds) == [0.1, 0.2, 0.2, 0.3, 1.0, 3.0]
    assert Speed(1, (0.1, 0.2, 0.4), 3).milliseconds(50) == pytest.approx(200)


@pytest.mark.parametrize(
    ("changes", "shape", "kind"),
    [
        ({}, (1, 3, 20, 30), np.float32),
        ({"input": "uint8"}, (1, 3, 20, 30), np.uint8),
        ({"size": (64, 96), "batch": 1, "input": "uint8"}, (1, 3, 64, 96), np.uint8),
    ],
)
def test_a_file_gets_its_input_ready_made(changes, shape, kind):
    runtime = fake_files.runtime(**changes)
    call = call_of(runtime, batch())
    assert not runtime.infer.seen
    found = call()
    (seen,) = runtime.infer.seen
    assert (seen.shape, seen.dtype) == (shape, kind)
    assert found[0]["boxes"].tolist() == [[5, 5, 25, 25]]


def test_pytorch_detects_in_eval_and_without_gradients():
    class Detector(torch.nn.Module):
        def forward(self, images, image_sizes):
            assert not self.training
            assert not torch.is_grad_enabled()
            return images, image_sizes

        def detect(self, outputs, image_sizes):
            return outputs

    images, sizes = call_of(TorchRuntime(Detector().train()), batch())()
    assert images.shape == (1, 3, 32, 32)
    assert sizes == [(20, 30)]
