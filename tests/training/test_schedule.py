"""The learning rate: the papers' schedules, the warm-up and the cosine."""

import pytest

from understudy.config import ScheduleConfig
from understudy.training.schedule import LearningRate


def factors(steps_per_epoch: int = 10, **options) -> list[float]:
    """The factor of every step of a run."""
    schedule = ScheduleConfig(**options)
    rate = LearningRate(schedule, steps_per_epoch)
    return [rate.at(step) for step in range(schedule.epochs * steps_per_epoch)]


@pytest.mark.parametrize(("name", "epochs", "drops"), [("1x", 12, (8, 11)), ("2x", 24, (16, 22))])
def test_the_papers_schedules(name, epochs, drops):
    found = factors(name=name, warmup_steps=0)
    assert len(found) == 10 * epochs
    expected = [1.0] * 10 * drops[0] + [0.1] * 10 * (drops[1] - drops[0]) + [0.01] * 10 * (epochs - drops[1])
    assert found == pytest.approx(expected)


def test_the_drops_of_another_schedule():
    found = factors(name="1x", epochs=12, drops=[0.75], warmup_steps=0)
    assert found == pytest.approx([1.0] * 90 + [0.1] * 30)
    assert factors(name="1x", epochs=2, drops=[], warmup_steps=0) == [1.0] * 20


def test_the_warm_up_is_linear_and_at_most_a_tenth_of_the_run():
    found = factors(100, name="1x", warmup_steps=50, warmup_factor=0.2)
    assert found[0] == pytest.approx(0.2)
    assert found[25] == pytest.approx(0.6)
    assert found[50:800] == [1.0] * 750
    short = factors(10, name="1x", warmup_steps=500)
    assert short[11] < 1 == short[12]


def test_the_warm_up_may_be_constant():
    found = factors(100, name="1x", warmup="constant", warmup_steps=50, warmup_factor=1 / 3)
    assert found[:50] == pytest.approx([1 / 3] * 50)
    assert found[50:800] == [1.0] * 750


def test_the_cosine_falls_to_zero():
    after = factors(name="cosine", epochs=12, warmup_steps=20)[12:]  # the warm-up: a tenth of 120 steps
    assert after[0] == 1
    assert after == sorted(after, reverse=True)
    assert after[54] == pytest.approx(0.5)
    assert 0 < after[-1] < 0.001
