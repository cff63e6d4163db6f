"""Train every family in every convention on a backbone of each kind for a moment, export it, and compare the files.

Each detector is trained on BCCD for a few epochs, so that it detects something, and exported to ONNX of any size. The
detections of ONNX Runtime (and of OpenVINO) on 50 validation photos are compared with those of PyTorch, and so is the
AP on all of them. A row is appended to the CSV file after each detector, and rows that are there are not repeated.

    python benchmarks/export_parity.py BCCD results/export_parity.csv --weights mobilenetv2_0.35.pt
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import torch

import understudy
from understudy.checkpoints import load_checkpoint
from understudy.deployment.onnx_file import Options, to_onnx
from understudy.deployment.writing import agreement_with
from understudy.evaluation import evaluate, loader_at_evaluation_size, open_split
from understudy.evaluation.runtimes import TorchRuntime, onnx_runtime, openvino_runtime
from understudy.evaluation.speed import spread

BACKBONES = {  # one of each kind, as narrow as it is useful
    "mobilenet_v2": {"width_mult": 0.35},
    "resnet18": {"width_mult": 0.5},
    "resnext50_32x4d": {"width_mult": 1.0},
    "regnet_x_400mf": {"width_mult": 1.0},
}
FAMILIES = [
    (family, conventions)
    for family in ("retinanet", "fcos", "gfl", "faster_rcnn")
    for conventions in ("torchvision", "mmdet")
    if (family, conventions) != ("gfl", "torchvision")  # torchvision has no GFL
]
PHOTOS = 50


def trained(folder: Path, data: str, name: str, conventions: str, options: dict, epochs: int) -> Path:
    """Train a detector for a moment."""
    return understudy.train(
        {
            "run": str(folder),
            "data": {"path": data, "shorter_side": 128, "colour": 0.0, "scale": 1.0, "workers": 0},
            "detector": {
                "name": name,
                "conventions": conventions,
                "neck_channels": 32,
                "backbone_weights": None,
                **options,
            },
            "schedule.epochs": epochs,
            "batch_size": 8,
            "threads": torch.get_num_threads(),
            "evaluate_every": epochs,
            "accelerator": "cpu",
        }
    )


def compare(run: Path, data: str, folder: Path) -> dict:
    """Export a run and compare the file with it."""
    checkpoint, file = load_checkpoint(run), folder / "student.onnx"
    started = time.perf_counter()
    file.write_bytes(to_onnx(checkpoint, Options()).SerializeToString())
    row = {"export_s": round(time.perf_counter() - started)}
    photos = list(loader_at_evaluation_size(spread(open_split(checkpoint, data, "val"), PHOTOS), checkpoint.config))
    detector = TorchRuntime(checkpoint.detector)
    for name, runtime in (("onnx", onnx_runtime(file)), ("openvino", openvino_runtime(file))):
        agreement = agreement_with(detector, runtime, photos)
        row |= {
            f"{name}_detections": agreement.detections,
            f"{name}_same": agreement.same,
            f"{name}_ties": agreement.ties,
            f"{name}_others": agreement.others,
            f"{name}_score": f"{agreement.score:.1e}",
            f"{name}_pixels": f"{agreement.pixels:.1e}",
        }
    before, after = (evaluate(each, data, split="val").coco["AP"] for each in (run, file))
    return row | {"AP": f"{before:.6f}", "AP_onnx": f"{after:.6f}", "AP_difference": f"{abs(before - after):.1e}"}


def main() -> None:
    """Fill the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", help="ImageNet weights of MobileNetV2 0.35")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    done = set()
    if arguments.output.exists():
        with arguments.output.open() as file:
            done = {(row["detector"], row["conventions"]) for row in csv.DictReader(file)}
    for backbone, options in BACKBONES.items():
        for family, conventions in FAMILIES:
            name = f"{family}_{backbone}"
            if (name, conventions) in done:
                continue
            if backbone == "mobilenet_v2" and arguments.weights:
                options = options | {"backbone_weights": arguments.weights}
            with tempfile.TemporaryDirectory() as folder:
                run = trained(Path(folder) / "run", arguments.data, name, conventions, options, arguments.epochs)
                row = {"detector": name, "conventions": conventions} | compare(run, arguments.data, Path(folder))
            new = not arguments.output.exists()
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with arguments.output.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
