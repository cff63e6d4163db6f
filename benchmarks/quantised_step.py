"""Measure a distillation step whose student is quantised, relative to one whose student is in float.

    python benchmarks/quantised_step.py retinanet_mobilenet_v2 fcos_resnet18 --rounds 10

Both steps are of FRS with a teacher of the same kind, half as wide as published, on a batch of noise with two objects
for each image; the necks have 32 channels. They take turns on one thread of the CPU.

* Time: the ratio of the medians of the process times.
* Memory: the ratio of the peaks that PyTorch holds during a step, minus what it held before.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from understudy import Balance, Learner, Quantiser, build_detector, build_methods, pair
from understudy.studies.timing import peak_memory


def step_of(name: str, options: argparse.Namespace, *, quantised: bool) -> Callable[[], None]:
    """Build student and teacher, and return a function that takes a step; the first ones have observed the ranges."""
    torch.manual_seed(0)
    student = build_detector(name, 3, neck_channels=32, width_mult=options.width)
    teacher = build_detector(name, 3, neck_channels=32, width_mult=0.5).requires_grad_(False).eval()
    common = pair(student.spec, teacher.spec)
    methods, weights = build_methods({"frs": {}}, common.student, common.teacher, balance=0.8)
    learner = Learner(student, methods, common).train()
    balance, quantiser = Balance(learner, weights), Quantiser(student) if quantised else None
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-4)
    for network in (learner, teacher):
        network.to(memory_format=torch.channels_last)
    images = torch.rand(options.batch, 3, *options.size)
    boxes = torch.tensor([[10.0, 10, 90, 80], [60, 40, 200, 150]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 1])}] * options.batch

    def step() -> None:
        with torch.no_grad():
            of_teacher = teacher(images, needs=learner.needs)
        loss = balance(learner(images, targets, of_teacher))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if quantiser:
            quantiser.step()

    step()
    step()
    return step


def seconds(step: Callable[[], None]) -> float:
    """Take a step, and return the seconds of this process."""
    started = time.process_time()
    step()
    return time.process_time() - started


def main() -> None:
    """Print a line for each detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="+")
    parser.add_argument("--size", nargs=2, type=int, default=(160, 224))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in options.detectors:
        steps = [step_of(name, options, quantised=quantised) for quantised in (False, True)]
        rounds = [[seconds(step) for step in steps] for _ in range(options.rounds)]
        plain, quantised = (statistics.median(times) for times in zip(*rounds, strict=True))
        before, after = (peak_memory(step, torch.device("cpu")) for step in steps)
        print(f"{name}: {quantised / plain:.2f} x the time, {after / before:.2f} x the memory ({plain:.3f} s in float)")


if __name__ == "__main__":
    main()
