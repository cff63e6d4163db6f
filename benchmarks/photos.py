"""Teacher, plain student and FRS student on real photos: equal epochs, several seeds, one table.

    python benchmarks/photos.py DATA --teacher-weights mobilenetv2_1.0.pt --student-weights mobilenetv2_0.35.pt

Each seed has a teacher (MobileNetV2 1.0, neck 64), a plain student (MobileNetV2 0.35, neck 32), and the same student
distilled from that teacher, once for each --frs. All are trained on the same images in the same order. The teacher may
be of another family (--teacher-family). Finished runs are not trained again: an interrupted benchmark continues where
it stopped, and pairs in the same OUTPUT share their teachers and plain students. The table (Markdown, with command,
hardware and times) is printed and written to OUTPUT/<student>_from_<teacher>.md.
"""

import argparse
import shlex
import statistics
import sys
from pathlib import Path

from understudy.compare.table import Table, summarise
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.detectors import FAMILIES
from understudy.files import read_rows
from understudy.report.views import view_run
from understudy.training.environment import environment
from understudy.training.run import distill, resume, train

WIDTHS = {"teacher": (1.0, 64), "student": (0.35, 32)}
FC_CHANNELS = {"teacher": 256, "student": 128}  # of a Faster R-CNN's box head
HALF_ANCHORS = {"retinanet": 2.0, "gfl": 4.0, "faster_rcnn": 4.0, "fcos": None}  # half the default, for small images


def main() -> None:
    """Train what is missing, then print the table."""
    options = arguments()
    runs = [run for seed in options.seeds for run in train_all(options, seed)]
    table = summarise(runs)
    text = as_markdown(options, runs, table)
    (options.output / f"{options.family}_from_{options.teacher_family}.md").write_text(text)
    print(text)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data set")
    parser.add_argument("--output", type=Path, default=Path("runs/photos"))
    parser.add_argument("--family", choices=FAMILIES, default="retinanet", help="of the student")
    parser.add_argument("--teacher-family", choices=FAMILIES, help="default: the student's")
    parser.add_argument("--teacher-weights", help="ImageNet weights of the teacher's backbone")
    parser.add_argument("--student-weights", help="ImageNet weights of the student's backbone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--shorter-side", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW, for this batch size (it is not scaled)")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="32")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument(
        "--frs",
        nargs="+",
        action="append",
        metavar=("NAME", "KEY=VALUE"),
        help="an FRS student called NAME with these options; may be repeated (default: one, frs, as published)",
    )
    options = parser.parse_args()
    options.frs = options.frs or [["frs"]]
    options.teacher_family = options.teacher_family or options.family
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    return options


def train_all(options: argparse.Namespace, seed: int) -> list[Path]:
    """Train the teacher, the plain and the distilled students of one seed, and return their run folders."""
    folder = options.output / f"seed{seed}"
    teacher, plain = folder / f"{options.teacher_family}_teacher", folder / f"{options.family}_plain"
    finish(TrainConfig, teacher, recipe(options, seed, "teacher"))
    finish(TrainConfig, plain, recipe(options, seed, "student"))
    runs = [teacher, plain]
    for name, *settings in options.frs:
        run = folder / f"{options.family}_from_{options.teacher_family}_{name}"
        values = recipe(options, seed, "student") | {"teacher": teacher}
        finish(DistillConfig, run, values, [f"methods.frs.{setting}" for setting in settings])
        runs.append(run)
    return runs


def recipe(options: argparse.Namespace, seed: int, role: str) -> dict:
    """Return the config of a teacher or a student."""
    width, neck = WIDTHS[role]
    family = options.teacher_family if role == "teacher" else options.family
    weights = options.teacher_weights if role == "teacher" else options.student_weights
    return {
        "data": {
            "path": options.data,
            "shorter_side": options.shorter_side,
            "longer_side": options.shorter_side * 5 // 3,
            "colour": 0.0,
            "scale": 1.0,
            "workers": options.workers,
        },
        "detector": {
            "name": f"{family}_mobilenet_v2",
            "width_mult": width,
            "neck_channels": neck,
            "head_norm": "group" if family == "retinanet" else None,
            "anchor_scale": HALF_ANCHORS[family],
            "settings": {"fc_channels": FC_CHANNELS[role]} if family == "faster_rcnn" else {},
            "backbone_weights": weights,
            "norm": "batch",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        "optimizer": {"name": "adamw", "lr": options.lr, "scale_lr": False, "clip_norm": 10.0},
        "schedule": {"name": "cosine", "epochs": options.epochs},
        "batch_size": options.batch_size,
        "precision": options.precision,
        "accelerator": options.accelerator,
        "evaluate_every": max(1, options.epochs // 6),
        "seed": seed,
    }


def finish(kind: type[TrainConfig], run: Path, values: dict, overrides: list[str] | None = None) -> None:
    """Train or resume a run, unless it is finished."""
    if (run / "result.json").exists():
        return
    print(f"--- {run}", file=sys.stderr)
    if (run / "last.ckpt").exists():
        resume(run)
        return
    config = load_config(kind, load_config(kind, values | {"run": run}), overrides or [])
    (distill if isinstance(config, DistillConfig) else train)(config)


def as_markdown(options: argparse.Namespace, runs: list[Path], table: Table) -> str:
    """Return the table with everything needed to repeat it."""
    facts = environment()
    lines = [
        f"`python {shlex.join(sys.argv)}`",
        "",
        f"Commit {facts['commit']}; {facts['processor']}, {facts['threads']} threads; "
        f"GPUs: {', '.join(facts['gpus']) or 'none'}; "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        "",
        "| seed | run | AP | AP50 | AP75 | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        best = max(read_rows(run / "metrics.csv"), key=lambda row: float(row["AP"]))
        scores = " | ".join(f"{100 * float(best[name]):.1f}" for name in ("AP", "AP50", "AP75"))
        minutes = float(read_rows(run / "metrics.csv")[-1]["seconds"]) / 60
        lines.append(f"| {run.parent.name.removeprefix('seed')} | {run.name} | {scores} | {minutes:.1f} |")
    lines += ["", "| mean over seeds | AP |", "|---|---|"]
    for name in dict.fromkeys(run.name for run in runs):
        values = [
            max(float(row["AP"]) for row in read_rows(run / "metrics.csv")) * 100 for run in runs if run.name == name
        ]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {statistics.mean(values):.1f}{spread} |")
    lines += ["", "| seed | distilled run | term | first epoch | last epoch |", "|---|---|---|---|---|"]
    for run in runs:
        for term in view_run(run, name=run.name, group=run.name, role="distilled").terms:
            values = f"{term.first:.4g} | {term.last:.4g}"
            lines.append(f"| {run.parent.name.removeprefix('seed')} | {run.name} | {term.name} | {values} |")
    lines += ["", *(f"- {note}" for note in [*(verdict.sentence for verdict in table.verdicts), *table.notes])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
