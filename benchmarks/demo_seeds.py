"""Measure the variation of the demo over seeds: its three runs without the page; one row per seed.

    python benchmarks/demo_seeds.py --seeds 0 1 2 3 4 5 6 7 8 9 --output runs/demo_seeds

Finished runs are not trained again.
"""

import argparse
import json
from pathlib import Path

import torch

from understudy.demo import train_all
from understudy.training.environment import environment


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--output", type=Path, default=Path("runs/demo_seeds"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = environment()
    print(f"`python {facts['command']}`, commit {facts['commit']}, {facts['processor']}, {facts['packages']}\n")
    print("| seed | teacher AP | plain AP | distilled AP | gain | plain s | FRS s |\n|---|---|---|---|---|---|---|")
    better = 0
    for seed in options.seeds:
        folder = options.output / str(seed)
        if not (folder / "distilled" / "result.json").exists():
            train_all(folder, seed, say=lambda line: None)
        runs = [json.loads((folder / name / "result.json").read_text()) for name in ("teacher", "plain", "distilled")]
        teacher, plain, distilled = (100 * run["coco"]["AP"] for run in runs)
        better += distilled > plain
        seconds = " | ".join(f"{run['train_seconds']:.0f}" for run in runs[1:])
        gain = distilled - plain
        print(f"| {seed} | {teacher:.1f} | {plain:.1f} | {distilled:.1f} | {gain:+.1f} | {seconds} |", flush=True)
    print(f"\nDistilled above plain in {better} of {len(options.seeds)} seeds.")


if __name__ == "__main__":
    main()
