"""Dist2 on the demo's scenes: its terms, its strategies and other methods, each with the swap test; one row per run.

    python benchmarks/dist2_scenes.py --seeds 0 1 2 --prepare
    python benchmarks/dist2_scenes.py --seeds 0 1 2 --device cuda

`--prepare` draws the scenes and takes the teacher of every seed. Then several processes may share the output folder,
each with other `--seeds` or `--runs`; a last one with all of them prints the whole table.

Scenes, teacher and student are the demo's, except that the student's neck is as wide as the teacher's: its feature maps
fit into the teacher's head without a transform. The swap test after `hint` and `pairwise` is the motivation of Dist2.
Every run of a seed has the same data, order of images and number of steps. Finished runs are not trained again.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from understudy.analysis.swap import swap_test
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.demo import TEACHER, draw_scenes, student_config, take_teacher
from understudy.training.environment import environment
from understudy.training.run import distill, train

PREPARED = "prepared"
"""File in the folder of a seed whose scenes and teacher are complete."""

RAMP = {"ramp_steps": 100}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hint": {"hint": RAMP},
    "pairwise": {"pairwise": RAMP},
    "FI": {"dist2": RAMP | {"strategies": "N2N", "di_weight": 0}},
    "DI": {"dist2": RAMP | {"strategies": "N2N", "fi_weight": 0}},
    "N2N": {"dist2": RAMP | {"strategies": "N2N"}},
    "B2B": {"dist2": RAMP | {"strategies": "B2B"}},
    "B2N": {"dist2": RAMP | {"strategies": "B2N"}},
    "N2B": {"dist2": RAMP | {"strategies": "N2B"}},
    "All2All": {"dist2": RAMP | {"strategies": "All2All"}},
    "All2All mean": {"dist2": RAMP | {"strategies": "All2All", "combine": "mean"}},
    "one of All2All": {"dist2": RAMP | {"strategies": "All2All", "draw": "one"}},
}
"""`FI` and `DI` are N2N with one term; the rows named after strategies have both terms, summed over the strategies."""


def main() -> None:
    """Run what is missing, then print the table; with `--prepare` only the scenes and the teachers."""
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.prepare:
        for seed in options.seeds:
            prepare(options.output / f"seed{seed}", seed)
        return
    if missing := [seed for seed in options.seeds if not (options.output / f"seed{seed}" / PREPARED).exists()]:
        sys.exit(f"No scenes or teacher for the seeds {', '.join(map(str, missing))}: run with --prepare first.")
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in options.seeds:
        for name in options.runs:
            found[name].append(measured(options, seed, name))
    print(as_markdown(options, found))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("runs/dist2_scenes"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--prepare", action="store_true", help="only draw the scenes and take the teachers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of training and of the swap test")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    return parser.parse_args()


def prepare(folder: Path, seed: int) -> None:
    """Draw the scenes of a seed and take the teacher, unless that is done; an unfinished attempt is repeated."""
    if (folder / PREPARED).exists():
        return
    for part in ("scenes", "teacher"):
        shutil.rmtree(folder / part, ignore_errors=True)
    take_teacher(folder / "teacher", draw_scenes(folder / "scenes", seed))
    (folder / PREPARED).touch()


def measured(options: argparse.Namespace, seed: int, name: str) -> dict[str, Any]:
    """Train and test a run in its own folder, unless that is done, and return its results."""
    folder = options.output / f"seed{seed}"
    scenes, teacher, run = folder / "scenes", folder / "teacher", folder / name.replace(" ", "_")
    result, swap = run / "result.json", run / "swap.json"
    if not result.exists():
        config = student_config(scenes, run, seed)
        config["detector"] = config["detector"] | {"neck_channels": TEACHER["neck_channels"]}
        config["schedule"] = config["schedule"] | {"epochs": options.epochs}
        config["evaluate_every"] = options.epochs
        config["accelerator"] = "gpu" if options.device == "cuda" else "cpu"
        if METHODS[name]:
            taught = {"teacher": teacher, "methods": METHODS[name], "balance": "off", "teacher_cache": "off"}
            distill(load_config(DistillConfig, config | taught))
        else:
            train(load_config(TrainConfig, config))
    if not swap.exists():
        tested = swap_test(teacher, run, device=options.device, batch_size=16)
        swap.write_text(json.dumps(tested.to_dict(), indent=2) + "\n")
    return json.loads(swap.read_text()) | {"seconds": json.loads(result.read_text())["train_seconds"]}


def as_markdown(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table with everything needed to repeat it; a cell has one number per seed."""
    facts = environment()
    device = torch.cuda.get_device_name() if options.device == "cuda" else facts["processor"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    teachers = " / ".join(f"{100 * test['teacher']:.1f}" for test in next(iter(found.values())))
    lines = [
        f"`python {facts['command']}`",
        "",
        f"Commit {facts['commit']}; {device}, {options.threads} threads; {versions}. "
        f"Seeds {', '.join(map(str, options.seeds))}; {options.epochs} epochs. The teacher's own AP: {teachers}.",
        "",
        "| run | student's AP | mean | swap | as they are | through its transforms | seconds |",
        "|---|---|---:|---|---|---|---|",
    ]
    for name, tests in found.items():
        own = [f"{100 * test['student']:.1f}" for test in tests]
        mean = f"{100 * statistics.mean(test['student'] for test in tests):.1f}"
        seconds = " / ".join(f"{test['seconds']:.0f}" for test in tests)
        for strategy in [swap["strategy"] for swap in tests[0]["swaps"]]:
            swaps = [swap for test in tests for swap in test["swaps"] if swap["strategy"] == strategy]
            straight, transformed = (column(swaps, way) for way in ("straight", "transformed"))
            lines.append(
                f"| {name} | {' / '.join(own)} | {mean} | {strategy} | {straight} | {transformed} | {seconds} |"
            )
    return "\n".join(lines)


def column(swaps: list[dict[str, Any]], way: str) -> str:
    """Return one number per seed, or a dash if this way does not exist."""
    return " / ".join("-" if swap[way] is None else f"{100 * swap[way]:.1f}" for swap in swaps)


if __name__ == "__main__":
    main()
