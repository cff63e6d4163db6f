"""Train the runs of a study: one after another, or some side by side, and begun ones from where they stopped."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.config import TrainConfig
from understudy.errors import RunError, Stopped, UserError
from understudy.studies.jobs import Outcome
from understudy.training import console
from understudy.training.folder import RunFolder
from understudy.training.resuming import own_methods
from understudy.training.run import resume, train
from understudy.training.together import train_together


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a study.

    Attributes:
        name: of its folder.
        row: the name of its row in the results, which includes the teacher if there are several.
        seed: of the run.
        config: of the run.
        folder: of the run.
    """

    name: str
    row: str
    seed: int
    config: TrainConfig
    folder: RunFolder


def one_by_one(
    groups: Sequence[list[Task]], run: Callable[[list[Task]], list[Outcome]]
) -> Iterator[tuple[list[Task], list[Outcome]]]:
    """Train groups one after another, and yield each with the outcomes of its runs, until a signal stops one."""
    for group in groups:
        console.say(f"now: {', '.join(task.name for task in group)}")
        found = run(group)
        yield group, found
        if any(outcome.stopped for outcome in found):
            return


def outcomes(group: Sequence[Task], accept_changes: bool = False) -> list[Outcome]:
    """Train runs, begun ones from where they stopped, and return how each ended."""
    if len(group) > 1:
        own = sorted({name for task in group for name in own_methods(task.config)})
        try:
            runs = [_begun(task) or task.config for task in group]
            return list(map(Outcome.of, train_together(runs, own, accept_changes=accept_changes)))
        except Stopped as stop:
            return [Outcome.of(stop)] * len(group)
        except (UserError, RunError) as error:  # of one of them, which is found by training each alone
            console.say(f"One after another, since these runs cannot be trained side by side: {error}")
            return _alone(group, accept_changes)
        finally:
            gc.collect()
    task = group[0]
    token = console.PREFIX.set(f"{task.name}: ")
    try:
        if run := _begun(task):
            return [Outcome(resume(run, own_methods(task.config), accept_changes=accept_changes))]
        return [Outcome(train(task.config))]
    except (Exception, Stopped) as error:
        return [Outcome.of(error)]
    finally:
        console.PREFIX.reset(token)
        gc.collect()  # a run is a cycle of trainer, callbacks and networks, with gigabytes of kept outputs


def _alone(group: Sequence[Task], accept_changes: bool) -> list[Outcome]:
    found: list[Outcome] = []
    for task in group:
        stopped = bool(found and found[-1].stopped)
        found += found[-1:] if stopped else outcomes([task], accept_changes)
    return found


def _begun(task: Task) -> Path | None:
    return task.folder.path if task.folder.config.exists() else None
