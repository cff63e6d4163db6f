"""Pairs of detectors that methods are tested on: records made up from two Specs, or those of tiny real detectors."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from understudy.detectors import Detector, build_detector, families
from understudy.methods import METHODS, Method
from understudy.methods.base import Layers
from understudy.methods.compatibility import OF_DETECTORS
from understudy.outputs import Outputs, Spec, Target, Truth

CLASSES = 3
MADE_UP_SIZE, REAL_SIZE = (48, 64), (64, 64)
FAMILIES = ("retinanet", "gfl", "fcos", "faster_rcnn")
OBJECTS = [  # of two images, in pixels
    {"boxes": torch.tensor([[4.0, 4, 36, 40], [26, 12, 60, 44]]), "labels": torch.tensor([2, 0])},
    {"boxes": torch.tensor([[10.0, 6, 48, 34]]), "labels": torch.tensor([1])},
]

# -------------------------------------------------------------------------------------------------------- made-up pairs

LITTLE = Spec(
    channels=(6, 6),
    strides=(8, 16),
    num_anchors=2,
    num_classes=CLASSES,
    stage_channels=(5, 7),
    stage_strides=(8, 16),
    family="retinanet",
    name="little",
)
BIG = replace(LITTLE, channels=(8, 8), stage_channels=(9, 12), name="big")
OF_FAMILY: dict[str, dict[str, Any]] = {
    "retinanet": {},
    "gfl": {"num_anchors": 1, "box_code": "distributions", "box_size": 4 * 5},
    "fcos": {"num_anchors": 1, "box_code": "distances in strides"},
    "faster_rcnn": {"num_classes": 1},
}
for name, changes in OF_FAMILY.items():
    changes |= families.FAMILIES[name].facts


def made_up_specs(family: str, *, same_channels: bool = False) -> tuple[Spec, Spec]:
    """Return the Specs of a made-up student and its teacher."""
    student = replace(LITTLE, family=family, **OF_FAMILY[family])
    if same_channels:
        student = replace(student, channels=BIG.channels, stage_channels=BIG.stage_channels)
    return student, replace(BIG, family=family, **OF_FAMILY[family])


def anchors_of(spec: Spec, image_size: tuple[int, int] = MADE_UP_SIZE) -> list[Tensor]:
    """Square anchors around the middle of every cell, (H, W, A, 4): points a stride wide, others two and more."""
    levels = []
    for stride in spec.strides:
        rows, columns = (torch.arange(stride / 2, pixels, stride) for pixels in image_size)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        halves = stride * (0.5 if spec.points else 1.0) * 1.5 ** torch.arange(spec.num_anchors)
        centres = torch.stack([x, y, x, y], dim=-1)[:, :, None]
        levels.append(centres + halves[:, None] * torch.tensor([-1.0, -1, 1, 1]))
    return levels


def record(spec: Spec, seed: int, images: int = 2) -> Outputs:
    """Random outputs of the shape, sign and size that a detector of this kind has; each a leaf with gradient."""
    generator = torch.Generator().manual_seed(seed)
    anchors = anchors_of(spec)
    sizes = [tuple(level.shape[:2]) for level in anchors]

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    def boxes(*size: int) -> Tensor:
        shape = (images, *size, spec.num_anchors, spec.box_size)
        if spec.box_code.startswith("distances"):
            return 0.5 + 3 * torch.rand(*shape, generator=generator)
        return random(*shape, scale=2.0 if spec.box_code == "distributions" else 0.3)

    made = {
        "stages": [random(images, channels, *size) for channels, size in zip(spec.stage_channels, sizes, strict=True)],
        "features": [random(images, channels, *size) for channels, size in zip(spec.channels, sizes, strict=True)],
        "class_logits": [random(images, *size, spec.num_anchors, spec.num_classes, scale=1.5) for size in sizes],
        "box_raw": [boxes(*size) for size in sizes],
    }
    for tensor in (tensor for part in made.values() for tensor in part):
        tensor.requires_grad_()
    cells = sum(math.prod(size) for size in sizes)
    extra = {"centerness": random(images, cells).requires_grad_()} if spec.centerness else {}
    return Outputs(**made, anchors=anchors, extra=extra, image_sizes=((48, 64), (44, 60)) * (images // 2))


def some_objects(counts: Sequence[int]) -> list[Target]:
    """The first objects of each image, as many as are asked for."""
    return [{key: value[:count] for key, value in each.items()} for each, count in zip(OBJECTS, counts, strict=True)]


def truth(spec: Spec, counts: Sequence[int] = (2, 1)) -> Truth:
    """Objects, and their anchors: those in the middle of a box; others in the box are ignored."""
    targets = some_objects(counts)
    anchors = torch.cat([level.flatten(0, 2) for level in anchors_of(spec)])
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    gt_index = torch.full((len(targets), len(anchors)), -1)
    for row, target in zip(gt_index, targets, strict=True):
        middles = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
        for number, (middle, box) in enumerate(zip(middles, target["boxes"], strict=True)):
            off = (centres - middle).abs() / (box[2:] - box[:2])
            row[(off < 0.5).all(1) & (row == -1)] = -2
            row[(off < 0.3).all(1)] = number
    return Truth(targets, gt_index)


# ----------------------------------------------------------------------------------------------------------- real pairs


def tiny_detector(family: str, neck_channels: int, seed: int, *, opinionated: bool = True) -> Detector:
    """A detector of real layers that runs in milliseconds.

    An opinionated one has scores and boxes that differ strongly between cells.
    """
    settings = {"fc_channels": 16} if families.FAMILIES[family].facts.get("two_stage") else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = build_detector(
            f"{family}_resnet18", CLASSES, neck_channels=neck_channels, width_mult=1 / 8, settings=settings
        )
        for layer in detector.network.head.modules() if family == "retinanet" else ():
            if isinstance(layer, nn.Conv2d):  # torchvision's first weights are too small for so few channels
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if opinionated:
            _give_opinions(detector)
    return detector


def _give_opinions(detector: Detector) -> None:
    two_stage = detector.spec.two_stage
    heads = detector.network.rpn.head if two_stage else detector.network.head
    scores = heads.cls_logits if two_stage else heads.classification_head.cls_logits
    boxes = heads.bbox_pred if two_stage else heads.regression_head.bbox_reg
    nn.init.normal_(scores.weight, std=0.3)
    nn.init.zeros_(scores.bias)
    nn.init.normal_(boxes.weight, std=0.1)
    if detector.spec.points:
        nn.init.constant_(boxes.bias, 1.5)  # sides of some pixels
    if (
        detector.spec.box_code == "distributions"
    ):  # sides of some pixels, too: a flat distribution is as long as the image
        with torch.no_grad():
            boxes.bias.copy_(-0.5 * torch.arange(boxes.out_channels // 4).repeat(4))


@functools.cache
def tiny_teacher(family: str) -> Detector:
    """A frozen teacher, built once."""
    return tiny_detector(family, 24, seed=7).requires_grad_(False).eval()


def tiny_images(seed: int = 3) -> Tensor:
    return torch.rand(2, 3, *REAL_SIZE, generator=torch.Generator().manual_seed(seed))


def from_leaves(detector: Detector, images: Tensor) -> Outputs:
    """A real record whose stages and features are leaves, so that they keep the gradient that reaches them."""
    with torch.no_grad():
        stages = detector.backbone(images)
        features = detector.neck(stages)
    leaves = [[tensor.clone().requires_grad_() for tensor in part] for part in (stages, features)]
    return replace(detector.head(leaves[1], REAL_SIZE), stages=leaves[0])


# ----------------------------------------------------------------------------------------------- a method and its input


@dataclass(frozen=True)
class Inputs:
    """The arguments of a method in one step."""

    student: Outputs
    teacher: Outputs
    truth: Truth
    layers: Layers | None = None

    def terms(self, method: Method) -> dict[str, Tensor]:
        """Run the method."""
        return method(self.student, self.teacher, self.truth, self.layers)

    def of_images(self, images: list[int]) -> "Inputs":
        """The same of some images, in some order."""
        chosen = self.student.of_images(images), self.teacher.of_images(images)
        ground = Truth([self.truth.targets[image] for image in images], self.truth.gt_index[images])
        return replace(self, student=chosen[0], teacher=chosen[1], truth=ground)._with_layers()

    def rounded(self) -> "Inputs":
        """The same in bfloat16, apart from the anchors."""
        return replace(self, student=_rounded(self.student), teacher=_rounded(self.teacher))._with_layers()

    def _with_layers(self) -> "Inputs":
        if self.layers is None:
            return self
        return replace(self, layers=replace(self.layers, student_outputs=self.student, teacher_outputs=self.teacher))


def _rounded(outputs: Outputs) -> Outputs:
    parts = {
        name: [tensor.bfloat16() for tensor in getattr(outputs, name)]
        for name in ("stages", "features", "class_logits", "box_raw")
    }
    return replace(outputs, **parts, extra={name: value.bfloat16() for name, value in outputs.extra.items()})


@dataclass(frozen=True)
class Pair:
    """A method and two detectors, which are real where it runs layers.

    Attributes:
        method: its class.
        student: the student's Spec.
        teacher: the teacher's Spec.
        terms: the terms to compute; None: those of the class.
    """

    method: type[Method]
    student: Spec
    teacher: Spec
    terms: tuple[str, ...] | None = None

    def made(self, **options: Any) -> Any:
        """The method with its first weights."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.method(self.student, self.teacher, terms=self.terms, **options)

    def inputs(self, counts: Sequence[int] = (2, 1), *, alike: bool = False) -> Inputs:
        """A step's input; `alike` gives the student the teacher's own record."""
        if runs_layers(self.method):
            return self._real(counts, alike)
        student = record(self.student, 2 if alike else 1)
        return Inputs(student, record(self.teacher, 2), truth(self.student, counts))

    def _real(self, counts: Sequence[int], alike: bool) -> Inputs:
        teacher = tiny_teacher(self.teacher.family)
        student = teacher if alike else tiny_detector(self.student.family, self.student.channels[0], seed=5)
        images, targets = tiny_images(), some_objects(counts)
        own, theirs = from_leaves(student, images), from_leaves(teacher, images)
        layers = Layers(student, teacher, None, own, theirs)
        return Inputs(own, theirs, Truth(targets, student.assign(own, targets)), layers)


def runs_layers(method: type[Method]) -> bool:
    """Whether a method needs the detectors themselves."""
    return any(not set(OF_DETECTORS).isdisjoint(reads) for reads in method.reads.values())


def pairs_of(name: str) -> list[Pair]:
    """Every pair of the same family that a method can compute something for, the most terms first."""
    method = METHODS[name]
    pairs = [_served(method, *specs) for specs in _candidates(method)]
    return sorted((pair for pair in pairs if pair), key=lambda pair: -len(pair.terms or ()))


@functools.cache
def home(name: str) -> Pair:
    """The first of the pairs for which a method computes the most terms."""
    return pairs_of(name)[0]


def _candidates(method: type[Method]) -> list[tuple[Spec, Spec]]:
    if runs_layers(method):
        return [(_tiny_spec(family, width), _tiny_spec(family, 24)) for width in (16, 24) for family in FAMILIES]
    return [made_up_specs(family, same_channels=same) for same in (False, True) for family in FAMILIES]


@functools.cache
def _tiny_spec(family: str, neck_channels: int) -> Spec:
    return tiny_detector(family, neck_channels, seed=0).spec


def _served(method: type[Method], student: Spec, teacher: Spec) -> Pair | None:
    obstacles = method.obstacles(student, teacher)
    terms = tuple(term for term in method.all_terms() if term not in obstacles)
    return Pair(method, student, teacher, terms) if terms else None


def run(name: str, student: Spec = LITTLE, teacher: Spec = BIG, **options: Any) -> tuple[Any, Outputs, Outputs, dict]:
    """A method with its first weights, two made-up records, and the method's terms for them."""
    method = Pair(METHODS[name], student, teacher).made(**options)
    own, theirs = record(student, 1), record(teacher, 2)
    torch.manual_seed(1)
    return method, own, theirs, method(own, theirs, truth(student))
