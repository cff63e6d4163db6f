"""Dist2 on the demo's scenes: its terms, its strategies and other methods, each with the swap test; one row per run.

    python benchmarks/dist2_scenes.py --seeds 0 1 --output runs/dist2_scenes

Scenes, teacher and student are the demo's, except that the student's neck is as wide as the teacher's: its feature maps
fit into the teacher's head without a transform. The swap test after `hint` and `pairwise` is the motivation of Dist2.
Every run of a seed has the same data, order of images and number of steps. Finished runs are not trained again.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from understudy.analysis.swap import swap_test
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.demo import TEACHER, draw_scenes, student_config, take_teacher
from understudy.training.environment import environment
from understudy.training.run import distill, train

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
    "one of All2All": {"dist2": RAMP | {"strategies": "All2All", "draw": "one"}},
}
"""`FI` and `DI` are N2N with one term; the rows named after strategies have both terms."""


def main() -> None:
    """Run what is missing, then print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    return parser.parse_args()


def measured(options: argparse.Namespace, seed: int, name: str) -> dict[str, Any]:
    """Train and test a run, unless that is done, and return its results."""
    folder = options.output / f"seed{seed}"
    scenes, teacher, run = folder / "scenes", folder / "teacher", folder / name.replace(" ", "_")
    if not scenes.exists():
        draw_scenes(scenes, seed)
    if not teacher.exists():
        take_teacher(teacher, scenes)
    result, swap = run / "result.json", run / "swap.json"
    if not result.exists():
        config = student_config(scenes, run, seed)
        config["detector"] = config["detector"] | {"neck_channels": TEACHER["neck_channels"]}
        config["schedule"] = config["schedule"] | {"epochs": options.epochs}
        config["evaluate_every"] = options.epochs
        if METHODS[name]:
            distill(load_config(DistillConfig, config | {"teacher": teacher, "methods": METHODS[name]}))
        else:
            train(load_config(TrainConfig, config))
    if not swap.exists():
        swap.write_text(json.dumps(swap_test(teacher, run, device="cpu", batch_size=16).to_dict(), indent=2) + "\n")
    return json.loads(swap.read_text()) | {"seconds": json.loads(result.read_text())["train_seconds"]}


def as_markdown(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table with everything needed to repeat it; a cell has one number per seed."""
    facts = environment()
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    teachers = " / ".join(f"{100 * test['teacher']:.1f}" for test in next(iter(found.values())))
    lines = [
        f"`python {facts['command']}`",
        "",
        f"Commit {facts['commit']}; {facts['processor']}, {options.threads} threads; {versions}. "
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
