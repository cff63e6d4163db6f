"""Print how big every method's terms are on the same tensors, and times their default weights: why these differ.

    python benchmarks/loss_sizes.py > sizes.md

Student and teacher have maps of realistic size: two images of 320 x 512 pixels, five levels from stride 8, necks of 256
channels, 80 classes. Nothing is trained: the records are drawn at random from one seed. Features have a deviation of 1,
and the student's correlate with the teacher's by 0.7; scores are about 0.01, and 0.5 in the anchors of six objects;
adapters have their first weights. Methods that run layers get those of an untrained detector. So the numbers compare
methods with each other, and are not those of a training run: these are in its losses.csv.

Each term is measured on two detectors of each family that it serves, which are alike.
"""

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor

from understudy.detectors import Detector, build_detector
from understudy.methods import METHODS, Method
from understudy.methods.base import Layers
from understudy.outputs import Outputs, Target, Truth
from understudy.runs import environment

IMAGE = (320, 512)
FAMILIES = {"retinanet": "RetinaNet", "fcos": "FCOS", "gfl": "GFL", "faster_rcnn": "Faster R-CNN"}
OBJECTS = (
    [[20, 30, 90, 120], [100, 60, 300, 260], [310, 40, 480, 300], [230, 20, 270, 52]],
    [[40, 40, 460, 300], [10, 200, 60, 310]],
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"<!-- benchmarks/loss_sizes.py, seed {options.seed}, commit {environment().get('commit', 'unknown')} -->\n")
    print(f"| term | {' | '.join(FAMILIES.values())} |\n|---|{'---:|' * len(FAMILIES)}")
    pairs = {family: record_pair(family, options.seed) for family in FAMILIES}
    for name in options.methods:
        sizes = {family: terms_of(METHODS[name], pair) for family, pair in pairs.items()}
        for term in METHODS[name].terms:
            weights = {family: METHODS[name].weights.get(family, {}).get(term) for family in FAMILIES}
            cells = [cell(sizes[family].get(term), weights[family]) for family in FAMILIES]
            print(f"| `{name}_{term}` | {' | '.join(cells)} |")


def record_pair(family: str, seed: int) -> tuple[Detector, Outputs, Outputs, Truth]:
    """A detector, a student's and a teacher's record of its shape, and the ground truth."""
    torch.manual_seed(seed)
    detector = build_detector(f"{family}_resnet18", 80).eval().requires_grad_(False)
    targets: list[Target] = [
        {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.arange(len(boxes))} for boxes in OBJECTS
    ]
    shapes = detector(torch.zeros(2, 3, *IMAGE))
    gt_index = detector.assign(shapes, targets)
    teacher = teacher_record(detector, shapes, targets, gt_index)
    return detector, student_record(teacher), teacher, Truth(targets, gt_index)


def teacher_record(detector: Detector, shapes: Outputs, targets: list[Target], gt_index: Tensor) -> Outputs:
    """Random features; scores and boxes that are right in the anchors of objects, and near zero elsewhere."""
    counts = [math.prod(level.shape[1:4]) for level in shapes.class_logits]
    class_logits = []
    for level, rows in zip(shapes.class_logits, gt_index.split(counts, dim=1), strict=True):
        logits = torch.randn_like(level) - 5
        flat = logits.flatten(1, 3)
        for image, (row, target) in enumerate(zip(rows, targets, strict=True)):
            places = (row >= 0).nonzero()[:, 0]
            labels = torch.zeros_like(places) if detector.objectness else target["labels"][row[places]]
            flat[image, places, labels] = torch.randn(len(places))
        class_logits.append(flat.view_as(logits))
    spread = 2.0 if detector.box_code == "distributions" else 0.3
    return replace(
        shapes,
        stages=[torch.randn_like(stage).relu() for stage in shapes.stages],
        features=[torch.randn_like(feature) for feature in shapes.features],
        class_logits=class_logits,
        box_raw=[box_code(detector, spread * torch.randn_like(box)) for box in shapes.box_raw],
        extra={name: torch.randn_like(value) for name, value in shapes.extra.items()},
    )


def student_record(teacher: Outputs) -> Outputs:
    """The teacher's record plus noise, with gradient."""

    def near(tensors: list[Tensor], noise: float) -> list[Tensor]:
        return [(0.7 * tensor + noise * torch.randn_like(tensor)).requires_grad_() for tensor in tensors]

    return replace(
        teacher,
        stages=[stage.relu().detach().requires_grad_() for stage in near(teacher.stages, 0.7)],
        features=near(teacher.features, 0.7),
        class_logits=[(logits + 0.7 * torch.randn_like(logits)).requires_grad_() for logits in teacher.class_logits],
        box_raw=[(box * (1 + 0.2 * torch.randn_like(box))).requires_grad_() for box in teacher.box_raw],
        extra={name: (value + 0.7 * torch.randn_like(value)).requires_grad_() for name, value in teacher.extra.items()},
    )


def box_code(detector: Detector, raw: Tensor) -> Tensor:
    """Distances are not negative, and some strides long."""
    return raw.abs() * 5 + 1 if detector.box_code.startswith("distances") else raw


def terms_of(method: type[Method], pair: tuple[Detector, Outputs, Outputs, Truth]) -> dict[str, float]:
    """The raw value of each term that can be computed for two detectors that are alike."""
    detector, student, teacher, truth = pair
    obstacles = method.obstacles(detector.spec, detector.spec)
    served = [term for term in method.terms if term not in obstacles]
    if not served:
        return {}
    torch.manual_seed(0)
    built = method.narrowed(served)(detector.spec, detector.spec)
    layers = [Layers(detector, detector, None, student, teacher)] if method.uses_layers else []
    terms = built(student, teacher, truth, *layers)
    return {term: terms[f"{method.name}_{term}"].item() for term in served}


def cell(value: float | None, weight: float | None) -> str:
    """A raw value, its weight and their product; a dash where the term is not served, or is off."""
    if value is None or weight == 0:
        return "-"
    return f"{value:.3g}, no weight" if weight is None else f"{value:.3g} x {weight:g} = {weight * value:.3g}"


if __name__ == "__main__":
    main()
