"""Interrupt tiny runs at random moments, continue them, and compare them with a run that nothing interrupted.

    python benchmarks/interruptions.py [--moments 20] [--seed 0] [--only SIGKILL]

Each moment is drawn from the duration of a whole run, from its start to its result. Signals, numbers of workers and
numbers of processes take turns. SIGKILL goes to the first process alone, so that its workers are orphaned, and the run
is continued at once; the others go to all processes of the run, as terminals and schedulers send them. A run that was
stopped before it wrote its config is started again. Every file that decides a result must be the same, to the bit.

The runs are forks of this process, which has imported everything, so a run takes a second or two. Two processes are
started like those of Lightning, by the variables that it sets. Prints a table and exits with 1 if a run differs.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from training_runs import contents

import understudy.training.run  # noqa: F401 - before the forks
from understudy.cli import main
from understudy.data.scenes import make_scenes

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGKILL")
KEYS = {
    "data.shorter_side": 64,
    "data.colour": 0.0,
    "data.scale": 1.0,
    "data.longer_side": 64,
    "data.workers": 2,
    "detector.name": "fcos_mobilenet_v2",
    "detector.width_mult": 0.35,
    "detector.neck_channels": 16,
    "optimizer.name": "adamw",
    "optimizer.lr": 0.003,
    "schedule.name": "1x",
    "schedule.epochs": 3,
    "batch_size": 2,
    "accelerator": "cpu",
    "log_every": 3,
}
LIMIT = 120.0
"""Seconds after which a run counts as hanging."""


def fork(arguments: Sequence[str], log: Path, variables: dict[str, str]) -> int:
    """Run the command line in a new session, and return the id of its process."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    code = 70
    try:
        os.setsid()
        os.environ.update(variables)
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for name in SIGNALS[:-1]:  # one that comes now would leave the copy of this program running
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        sys.stderr.flush()
        if torch.distributed.is_initialized():
            with contextlib.suppress(Exception):
                torch.distributed.destroy_process_group()
        os._exit(code)


def start(arguments: Sequence[str], log: Path, processes: int) -> list[int]:
    """Start the processes of a run, the first one first."""
    if processes == 1:
        return [fork(arguments, log, {})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    return [fork(arguments, log, {**common, "LOCAL_RANK": str(rank)}) for rank in range(processes)]


def wait(process: int, limit: float = LIMIT) -> int | None:
    """Return the exit code of a process, negative for a signal; None if it had to be killed."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def interrupted(started: list[int], number: int, moment: float) -> int | None:
    """Send a signal to a run after a number of seconds, and return the exit code of its first process."""
    time.sleep(moment)
    for process in started[:1] if number == signal.SIGKILL else started:
        with contextlib.suppress(ProcessLookupError):
            (os.kill if number == signal.SIGKILL else os.killpg)(process, number)
    code = wait(started[0])
    for process in started[1:]:  # when the first one was killed, the others fail in their next collective
        wait(process, 20.0 if number == signal.SIGKILL else LIMIT)
    return code


def finished(started: list[int]) -> int | None:
    """Wait for a run, and return the exit code of its first process."""
    first, *_ = [wait(process) for process in started]
    return first


def run_all(place: Path, moments: int, seed: int, only: str | None) -> bool:
    """Make the reference runs and all interrupted ones, print a row for each, and return whether all were the same."""
    scenes = make_scenes(place / "scenes", train=8, val=4, size=64, seed=0)
    keys = {**KEYS, "data.path": scenes, "data.workers": 0}
    teacher = place / "teacher"
    assert finished(start(["train", *options(keys, run=teacher)], place / "teacher.log", 1)) == 0
    keys["teacher"] = teacher
    expected, duration = {}, {}
    for processes in (1, 2):
        run = place / f"whole{processes}"
        begun = time.monotonic()
        command = ["distill", *options(keys, run=run, devices=processes, strategy="auto" if processes == 1 else "ddp")]
        assert finished(start(command, place / f"{run.name}.log", processes)) == 0, run
        expected[processes], duration[processes] = contents(run), time.monotonic() - begun
    print(f"whole runs: {duration[1]:.1f} s with one process, {duration[2]:.1f} s with two", flush=True)
    teachers_files = {file.name: file.read_bytes() for file in teacher.iterdir() if file.is_file()}
    drawn, same = random.Random(seed), True
    for index in range(moments):
        name = only or SIGNALS[index % len(SIGNALS)]
        workers, processes = (0, 2)[index // len(SIGNALS) % 2], (1, 2)[index // (2 * len(SIGNALS)) % 2]
        run, moment = place / f"run{index}", drawn.uniform(0.02, 1.0) * duration[processes]
        strategy = "auto" if processes == 1 else "ddp"
        more = {"run": run, "devices": processes, "strategy": strategy, "data.workers": workers}
        command = ["distill", *options({**keys, **more})]
        log = place / f"{run.name}.log"
        code = interrupted(start(command, log, processes), getattr(signal, name), moment)
        found = "result" if (run / "result.json").exists() else "last.ckpt" if (run / "last.ckpt").exists() else "none"
        if found != "result":
            command = ["resume", str(run)] if (run / "config.yaml").exists() else command
            again = finished(start(command, log, processes))
        else:
            again = 0
        problem = "" if again == 0 else f"continuing exited with {again}"
        if not problem:
            differing = [key for key, value in contents(run).items() if value != expected[processes][key]]
            problem = f"different: {', '.join(differing)}" if differing else ""
        allowed = (0, 128 + getattr(signal, name), -getattr(signal, name))
        problem = problem or ("" if code in allowed else f"the first exit code is {code}")
        problem = problem or ("a traceback" if "Traceback" in log.read_text() and name != "SIGKILL" else "")
        same = same and not problem
        print(
            f"{index:>3}  {name:<8} workers {workers}  processes {processes}  after {moment:5.2f} s  exit code {code}  "
            f"{command[0] if found != 'result' else '-':<8} from {found:<10} {problem or 'the same'}",
            flush=True,
        )
    unchanged = {file.name: file.read_bytes() for file in teacher.iterdir() if file.is_file()} == teachers_files
    print("teacher's folder:", "unchanged" if unchanged else "CHANGED")
    return same and unchanged


def options(keys: dict[str, object], **more: object) -> list[str]:
    """Write keys as arguments."""
    return [f"{key}={value}" for key, value in {**keys, **more}.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SIGNALS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ok = run_all(Path(folder), chosen.moments, chosen.seed, chosen.only)
        if not ok:
            for file in sorted(Path(folder).glob("run*.log")):
                print(f"--- {file.name}\n{file.read_text()[-3000:]}")
    sys.exit(0 if ok else 1)
