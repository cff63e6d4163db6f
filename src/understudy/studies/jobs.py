"""Train groups of runs in several processes at once.

The workers have sessions of their own, so a terminal's Ctrl-C reaches only the parent, which asks them to save and
stop. A worker whose parent has died does so, too.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from understudy.errors import MethodError, RunError, Stopped, UserError, is_out_of_memory
from understudy.training.checkpointing import STOPPING, heeding

Group = TypeVar("Group")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; unlike most exceptions it can be sent to another process.

    Attributes:
        run: the folder, if it is finished.
        failure: the message, if it has failed.
        stopped: the number of the signal that stopped it, or 0.
        fatal: whether the failure concerns all runs, as a full disk does.
    """

    run: Path | None = None
    failure: str = ""
    stopped: int = 0
    fatal: bool = False

    @classmethod
    def of(cls, found: Path | BaseException) -> "Outcome":
        """Describe what a run returned or raised.

        Raises:
            BaseException: what is neither a failure of the run nor a signal: a bug.
        """
        if isinstance(found, Path):
            return cls(found)
        if isinstance(found, Stopped):
            return cls(failure=str(found), stopped=found.exit_code - 128)
        if not isinstance(found, RunError | UserError) and not is_out_of_memory(found):
            raise found
        return cls(failure=str(found), fatal=not isinstance(found, MethodError) and _is_of_the_machine(found))


def _is_of_the_machine(error: BaseException) -> bool:
    """Return whether the system caused an error, as a full disk does, however often it was explained since."""
    cause = error.__cause__
    return cause is not None and (isinstance(cause, OSError) or _is_of_the_machine(cause))


def in_processes(
    groups: Sequence[Group], train: Callable[[Group], list[Outcome]], jobs: int
) -> Iterator[tuple[Group, list[Outcome]]]:
    """Train groups in several processes, and yield each with the outcomes of its runs, as they end.

    Args:
        groups: of runs; they are sent to the processes.
        train: a function of a module, which trains a group.
        jobs: number of processes.

    Raises:
        Stopped: a signal stopped them; every run that had begun was saved.
        RunError: the system ended a process.
    """
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(threads, os.getpid(), jobs)
    ) as pool:
        waiting = deque(groups)
        running: dict[Future[list[Outcome]], Group] = {}
        received: list[int] = []
        with heeding(lambda number, frame: received.append(number)):
            while running or (waiting and not received):
                while waiting and len(running) < jobs and not received:
                    group = waiting.popleft()
                    running[pool.submit(_work, train, group)] = group
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), _result(future, jobs)
                if received:  # again and again: a run that is being built does not heed signals yet
                    _stop(pool)
        if received:
            raise Stopped("", received[0])


def _result(future: Future[list[Outcome]], jobs: int) -> list[Outcome]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RunError(
            f"The system ended one of {jobs} processes, most likely because the memory was full. Call the study again: "
            "its runs go on from their last checkpoints; with a lower --jobs each has more memory."
        ) from error


def _stop(pool: ProcessPoolExecutor) -> None:
    """Ask the workers to save and stop."""
    for worker in list((pool._processes or {}).values()):
        with contextlib.suppress(ProcessLookupError):
            if worker.pid and worker.is_alive():
                os.kill(worker.pid, signal.SIGTERM)


_BUSY = threading.Event()
"""Set in a worker that trains."""


def _begin(threads: int, parent: int, jobs: int) -> None:
    """Prepare a worker."""
    import torch
    from rich.console import Console

    from understudy.training import console, machine

    machine.RUNS_AT_ONCE = jobs
    with contextlib.suppress(AttributeError, OSError):  # Windows has no sessions
        os.setsid()
    torch.set_num_threads(threads)
    console.CONSOLE = Console(stderr=True, highlight=False, markup=False, force_terminal=False)  # lines, no bars
    for number in STOPPING:  # heeded by runs only
        signal.signal(number, lambda number, frame: None)
    threading.Thread(target=_stop_without, args=(parent,), daemon=True).start()


def _work(train: Callable[[Group], list[Outcome]], group: Group) -> list[Outcome]:
    _BUSY.set()
    try:
        return train(group)
    finally:
        _BUSY.clear()


def _stop_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    while _BUSY.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    os._exit(0)
