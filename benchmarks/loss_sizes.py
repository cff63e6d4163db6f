"""Print the raw value of every method's terms on the same tensors, and times their default weights.

    python benchmarks/loss_sizes.py > docs/loss_sizes.md       # also part of docs/generate.py

Student and teacher have feature maps of realistic size: two images of 320 x 512 pixels, five levels from stride 8,
necks of 256 channels, 80 classes. Nothing is trained. The records are drawn at random from one seed: features with a
deviation of 1, those of the student with a correlation of 0.7 to the teacher's; scores of about 0.01, and 0.5 at the
anchors of six objects; adapters with their initial weights. Methods that run layers get those of an untrained
detector. So the numbers compare methods with each other. Those of a training run are in its losses.csv.

Each term is measured on two equal detectors of each family that it is available for.
"""

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor

from understudy.boxes import box_code
from understudy.detectors import Detector, build_detector
from understudy.listing.facts import OWN_FAMILIES
from understudy.methods import METHODS
from understudy.methods.base import Layers, Method
from understudy.outputs import Outputs, Target, Truth

IMAGE = (320, 512)
INTRODUCTION = """<!-- Generated: python benchmarks/loss_sizes.py > docs/loss_sizes.md -->
# Sizes of the losses

Published weights differ by more than a factor of 1000. They have no meaning apart from their reduction: a sum over
256 channels and all cells is many thousand times the mean of the same differences. The table shows, for each term,
its raw value times its default weight, and the product, on the same tensors: two images of 320 x 512 pixels, random
student features with a deviation of 1 and a correlation of 0.7 to the teacher's (seed {seed}, PyTorch on a CPU).
Terms that read layers used an untrained detector. A dash: not available, or off.

These are not the values of a training run. A run writes those to `losses.csv`, with the weight of each step, beside
the student's own losses; `understudy compare --html` shows them on its page. If no published weight fits, start with
one that makes the term 10 to 30 % of the detection loss. A run warns when distillation makes up more than 95 % of the
student's gradient, and names the largest term.

With these tensors the squared difference of features is 0.58 on average. `hint`, a mean, has five levels of it.
`frs_feature` is a sum over 256 channels, and its untrained adapter doubles the difference. `mgd_feature` and
`fgd_relation` are sums over cells, too. Two terms stay small under the weights of their authors or of others, by
construction: `rank_mimicking_class` and `gid_relation`.
"""
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
    print(INTRODUCTION.format(seed=options.seed))
    print(f"| term | {' | '.join(family.title for family in OWN_FAMILIES.values())} |")
    print(f"|---|{'---:|' * len(OWN_FAMILIES)}")
    pairs = {family: record_pair(family, options.seed) for family in OWN_FAMILIES}
    for name in options.methods:
        sizes = {family: terms_of(METHODS[name], pair) for family, pair in pairs.items()}
        for term in METHODS[name].terms:
            weights = {family: METHODS[name].default_weights(pair[0].spec).get(term) for family, pair in pairs.items()}
            cells = [cell(sizes[family].get(term), weights[family]) for family in OWN_FAMILIES]
            print(f"| `{name}_{term}` | {' | '.join(cells)} |")


def record_pair(family: str, seed: int) -> tuple[Detector, Outputs, Outputs, Truth]:
    """Build a detector, a student's and a teacher's record of its shape, and the ground truth."""
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
    """Draw features, and scores that are high at the anchors of objects and near zero elsewhere."""
    counts = [math.prod(level.shape[1:4]) for level in shapes.class_logits]
    class_logits = []
    for level, rows in zip(shapes.class_logits, gt_index.split(counts, dim=1), strict=True):
        logits = torch.randn_like(level) - 5
        flat = logits.flatten(1, 3)
        for image, (row, target) in enumerate(zip(rows, targets, strict=True)):
            places = (row >= 0).nonzero()[:, 0]
            labels = torch.zeros_like(places) if detector.spec.objectness else target["labels"][row[places]]
            flat[image, places, labels] = torch.randn(len(places))
        class_logits.append(flat.view_as(logits))
    spread = 2.0 if box_code(detector.spec).distributed else 0.3
    return replace(
        shapes,
        stages=[torch.randn_like(stage).relu() for stage in shapes.stages],
        features=[torch.randn_like(feature) for feature in shapes.features],
        class_logits=class_logits,
        box_raw=[possible(detector, spread * torch.randn_like(box)) for box in shapes.box_raw],
        extra={name: torch.randn_like(value) for name, value in shapes.extra.items()},
    )


def student_record(teacher: Outputs) -> Outputs:
    """Return the teacher's record plus noise, with gradient."""

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


def possible(detector: Detector, raw: Tensor) -> Tensor:
    """Make distances positive, and some strides long."""
    return raw.abs() * 5 + 1 if detector.spec.points else raw


def terms_of(method: type[Method], pair: tuple[Detector, Outputs, Outputs, Truth]) -> dict[str, float]:
    """Compute the raw value of each term that is available for two equal detectors."""
    detector, student, teacher, truth = pair
    obstacles = method.obstacles(detector.spec, detector.spec)
    served = [term for term in method.terms if term not in obstacles]
    if not served:
        return {}
    torch.manual_seed(0)
    built = method(detector.spec, detector.spec, terms=served)
    terms = built(student, teacher, truth, Layers(detector, detector, None, student, teacher))
    return {term: terms[f"{method.name}_{term}"].item() for term in served}


def cell(value: float | None, weight: float | None) -> str:
    """Write a raw value, its weight and their product; a dash if the term is not available, or off."""
    if value is None or weight == 0:
        return "-"
    return f"{value:.3g}, no weight" if weight is None else f"{value:.3g} x {weight:g} = {weight * value:.3g}"


if __name__ == "__main__":
    main()
