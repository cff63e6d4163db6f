"""The layers between a student's maps and a teacher's detections: Dist2's transforms, and the teacher's own.

A file beside dist2.py, because the swap test sends a student's maps the same way and is no method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import RunError
from understudy.functional.imitation import soft_detection_loss
from understudy.methods.base import Layers
from understudy.outputs import Outputs, Spec, Target, Truth, flatten_levels

if TYPE_CHECKING:
    from understudy.detectors import Detector
    from understudy.pairing import Pairing

Strategy = Literal["N2N", "B2B", "B2N", "N2B"]
ALL2ALL: tuple[Strategy, ...] = ("N2N", "B2B", "B2N", "N2B")

PLACES = {"N": "neck", "B": "backbone"}
"""Where maps are taken, and where they enter, by the letters of a strategy: at the outputs of the one or the other."""


def chosen(strategies: str | tuple[str, ...]) -> tuple[str, ...]:
    """The strategies that are meant by one, by several, or by ``"All2All"``."""
    if isinstance(strategies, str):
        return ALL2ALL if strategies == "All2All" else (strategies,)
    return tuple(dict.fromkeys(strategies))


def strides_at(place: str, spec: Spec) -> tuple[int, ...]:
    """Pixels per cell of the maps at a place."""
    return spec.stage_strides if place == "B" else spec.strides


def channels_at(place: str, spec: Spec) -> dict[int, int]:
    """Channels of the maps at a place, by stride."""
    return dict(zip(strides_at(place, spec), spec.stage_channels if place == "B" else spec.channels, strict=True))


def by_stride(place: str, spec: Spec, outputs: Outputs) -> dict[int, Tensor]:
    """The maps (N, C, H, W) of a record at a place, by stride."""
    return dict(zip(strides_at(place, spec), outputs.stages if place == "B" else outputs.features, strict=True))


def strides_served(strategy: str, student: Spec, teacher: Spec) -> tuple[int, ...]:
    """Strides of the teacher's maps that the student's can stand for.

    They are those that both have, and of a neck also the coarser ones, as long as each is twice the one before: from
    the student's coarsest map they are made by halving it.
    """
    own, theirs = strides_at(strategy[0], student), strides_at(strategy[-1], teacher)
    served = [stride for stride in theirs if stride in own]
    while strategy[-1] == "N" and own and (coarser := 2 * max((*own, *served))) in theirs:
        served.append(coarser)
    return tuple(served)


def misplaced(strategies: Sequence[str], student: Spec, teacher: Spec) -> list[str]:
    """Say which strategies find nothing that the student's maps could stand for, naming both sides."""
    return [
        f"{name} finds no stride in common: the student {student.name} has {strides_at(name[0], student)} at its "
        f"{PLACES[name[0]]}, the teacher {teacher.name} {strides_at(name[-1], teacher)} at its {PLACES[name[-1]]}"
        for name in strategies
        if not strides_served(name, student, teacher)
    ]


class Transform(nn.Module):
    """Dist2's f_trans of one strategy: turns a student's maps into what a teacher has at a place.

    The poster does not say what it is; this is our reading. Into a neck a 3x3 convolution per level, whose outputs have
    a sign as a pyramid's do; into a backbone a 1x1 convolution, batch normalisation and a ReLU per stage, for a stage
    ends in a ReLU. Levels coarser than the student's stages come from its last one by 3x3 convolutions of stride 2,
    with a ReLU between two.

    Args:
        strategy: where the student's maps are taken, where they enter the teacher: ``"N2N"``, ``"B2B"``, ``"B2N"``,
            ``"N2B"``.
        student: what is known of the student.
        teacher: what is known of the teacher.
    """

    def __init__(self, strategy: str, student: Spec, teacher: Spec):
        super().__init__()
        self.source, self.student = strategy[0], student
        own, theirs = channels_at(strategy[0], student), channels_at(strategy[-1], teacher)
        self.layers = nn.ModuleDict()
        for stride in strides_served(strategy, student, teacher):
            if stride in own and strategy[-1] == "B":
                layer: nn.Module = _stage_transform(own[stride], theirs[stride])
            elif stride in own:
                layer = nn.Conv2d(own[stride], theirs[stride], kernel_size=3, padding=1)
            else:
                before = own.get(stride // 2) or theirs[stride // 2]
                layer = nn.Conv2d(before, theirs[stride], kernel_size=3, stride=2, padding=1)
            self.layers[str(stride)] = layer

    def forward(self, student: Outputs) -> dict[int, Tensor]:
        """Turn a student's record into the teacher's maps, each (N, C, H, W), by stride."""
        own = by_stride(self.source, self.student, student)
        made: dict[int, Tensor] = {}
        for stride, layer in ((int(name), layer) for name, layer in self.layers.items()):
            if stride in own:
                source = own[stride]
            else:  # halved, by the layer's own stride
                source = own[stride // 2] if stride // 2 in own else F.relu(made[stride // 2])
            made[stride] = layer(source)
        return made


def _stage_transform(own: int, theirs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(own, theirs, kernel_size=1, bias=False), nn.BatchNorm2d(theirs), nn.ReLU())


def through_teacher(place: str, maps: Mapping[int, Tensor], teacher: "Detector", own: Outputs) -> Outputs:
    """Run foreign maps through the rest of a teacher; gradient reaches them, and no weight of a frozen teacher.

    Args:
        place: where they enter: ``"B"`` before the neck, ``"N"`` before the head.
        maps: (N, C, H, W) by stride, as the teacher's own are there. Of other strides the teacher's own are used.
        teacher: in ``eval()``, its parameters frozen.
        own: the teacher's whole record of the same images, a constant.
    """
    entering = [maps.get(stride, level.detach()) for stride, level in by_stride(place, teacher.spec, own).items()]
    features = teacher.neck(entering) if place == "B" else entering
    height, width = (side * teacher.spec.strides[0] for side in features[0].shape[-2:])
    found = teacher.head(features, (height, width))
    # The padded images may be no whole number of cells: the teacher's own anchors are the right ones.
    return replace(found, anchors=own.anchors, image_sizes=own.image_sizes or found.image_sizes)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher's layers are to find in a student's maps of one step: objects, or what they find in their own.

    Attributes:
        teacher: in ``eval()``, its parameters frozen.
        own: the teacher's whole record of the images that take part.
        images: their places in the batch.
        labelled: places, among these, of the images that have a ground truth.
        targets: their ground truth, with the teacher's labels, or None where it is not asked for.
        gt_index: the teacher's own assignment to it, which anchors and objects alone decide.
        soft: whether they are to find what the teacher itself finds.
    """

    teacher: "Detector"
    own: Outputs
    images: list[int]
    labelled: list[int]
    targets: list[Target]
    gt_index: Tensor | None
    soft: bool

    @classmethod
    def of(cls, supervision: str, truth: Truth, layers: Layers) -> Self:
        """Prepare a step's lesson: by the ``"truth"``, by the ``"teacher"``, or by ``"both"``."""
        every = list(range(len(truth.targets)))
        known = [image for image, labelled in enumerate(truth.labelled.tolist()) if labelled]
        images = known if supervision == "truth" else every
        labelled = [] if supervision == "teacher" else [images.index(image) for image in known]
        targets = _with_labels_of_teacher([truth.targets[images[place]] for place in labelled], layers.pairing)
        own = layers.teacher_outputs.of_images(images)
        left_out = [truth.left_out[images[place]] for place in labelled] if truth.left_out else []
        gt_index = _assigned(layers.teacher, own.of_images(labelled), targets, left_out) if labelled else None
        return cls(layers.teacher, own, images, labelled, targets, gt_index, supervision != "truth")

    def loss(self, place: str, maps: Mapping[int, Tensor]) -> Tensor:
        """Say how far the teacher's layers are from finding it in maps (N, C, H, W), by stride, of the whole batch.

        Raises:
            RunError: no gradient comes back through them.
        """
        if not self.images:
            return torch.cat([level[:0].flatten() for level in maps.values()]).float().sum()
        whole = self.images == list(range(len(next(iter(maps.values())))))
        maps = maps if whole else {stride: level[self.images] for stride, level in maps.items()}
        found = through_teacher(place, maps, self.teacher, self.own)
        reached = all(tensor.requires_grad for tensor in (*found.class_logits, *found.box_raw))
        if torch.is_grad_enabled() and not reached:
            raise RunError(
                f"No gradient comes back through the layers of the teacher {self.teacher.spec.name}: they run "
                "under no_grad, so that its loss can teach nothing. Freeze its weights instead: requires_grad_(False)."
            )
        losses: list[Tensor] = []
        if self.gt_index is not None:
            losses += self.teacher.loss(found.of_images(self.labelled), self.targets, self.gt_index).values()
        if self.soft:
            losses.append(soft_detection_loss(*_detections(self.teacher, found), *_detections(self.teacher, self.own)))
        return torch.stack(losses).sum()


def _assigned(teacher: "Detector", outputs: Outputs, targets: list[Target], left_out: Sequence[Tensor]) -> Tensor:
    """The teacher's assignment (N, R); anchors of objects that it does not know (X, 4) of an image are ignored."""
    if not left_out:
        return teacher.assign(outputs, targets)
    every = [
        {"boxes": torch.cat([target["boxes"], boxes]), "labels": F.pad(target["labels"], (0, len(boxes)))}
        for target, boxes in zip(targets, left_out, strict=True)
    ]
    known = torch.tensor([len(target["boxes"]) for target in targets], device=targets[0]["boxes"].device)
    gt_index = teacher.assign(outputs, every)
    return torch.where(gt_index < known[:, None], gt_index, -2)


def _with_labels_of_teacher(targets: list[Target], pairing: "Pairing | None") -> list[Target]:
    """Ground truth whose labels, numbers of the common classes, become those that the teacher has for these."""
    # The same numbers: also where an RPN's pair was given no names, and knows less classes than the ground truth.
    if pairing is None or pairing.teacher_labels == tuple(range(len(pairing.teacher_labels))):
        return targets
    return [
        {**target, "labels": target["labels"].new_tensor(pairing.teacher_labels)[target["labels"]]}
        for target in targets
    ]


def _detections(detector: "Detector", outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Class logits (N, R, K) and boxes (N, R, 4) of every anchor."""
    return flatten_levels(outputs.class_logits), flatten_levels(detector.decode(outputs))
