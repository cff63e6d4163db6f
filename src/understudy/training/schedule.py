"""The learning rate of a run as a function of the step."""

import math
from dataclasses import dataclass

from understudy.config import ScheduleConfig


@dataclass(frozen=True, slots=True)
class LearningRate:
    """The factor of the learning rate at each step: the warm-up, then the schedule.

    Attributes:
        schedule: the run's ``schedule`` section.
        steps_per_epoch: optimizer steps of one epoch.

    >>> rate = LearningRate(ScheduleConfig(name="1x", warmup_steps=0), steps_per_epoch=10)
    >>> [round(rate.at(10 * epoch), 2) for epoch in (0, 7, 8, 11)]
    [1.0, 1.0, 0.1, 0.01]
    """

    schedule: ScheduleConfig
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """Return the factor (0..1) at a step, counted from 0."""
        schedule = self.schedule
        total = schedule.epochs * self.steps_per_epoch
        warmup = min(schedule.warmup_steps, total // 10)
        if step < warmup:
            progress = step / warmup if schedule.warmup == "linear" else 0.0
            return schedule.warmup_factor + (1 - schedule.warmup_factor) * progress
        if schedule.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
        # 1x is 12 epochs with drops after 8 and 11, 2x is 24 with drops after 16 and 22: the same proportions.
        epoch, drops = step / self.steps_per_epoch, (2 / 3, 11 / 12) if schedule.drops is None else schedule.drops
        return 0.1 ** sum(epoch >= round(schedule.epochs * part) for part in drops)
