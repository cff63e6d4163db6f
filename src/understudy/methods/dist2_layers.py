"""The layers between a student's maps and a teacher's detections: Dist2's transforms, and the teacher's own layers.

The swap test (``understudy.analysis.swap``) uses them, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.outputs import Outputs, Spec

if TYPE_CHECKING:
    from understudy.detectors import Detector

Strategy = Literal["N2N", "B2B", "B2N", "N2B"]
ALL2ALL: tuple[Strategy, ...] = ("N2N", "B2B", "B2N", "N2B")

PLACES = {"N": "neck", "B": "backbone"}
"""Places by their letters in a strategy. Maps are taken, and enter the teacher, at the output of the neck or backbone.
"""


def chosen(strategies: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the strategies that are meant by one, by several, or by ``"All2All"``.

    Examples:
        >>> chosen("All2All"), chosen("N2N")
        (('N2N', 'B2B', 'B2N', 'N2B'), ('N2N',))
    """
    if isinstance(strategies, str):
        return ALL2ALL if strategies == "All2All" else (strategies,)
    return tuple(dict.fromkeys(strategies))


def strides_at(place: str, spec: Spec) -> tuple[int, ...]:
    """Return the pixels per cell of the maps at a place."""
    return spec.stage_strides if place == "B" else spec.strides


def channels_at(place: str, spec: Spec) -> dict[int, int]:
    """Return the channels of the maps at a place, by stride."""
    return dict(zip(strides_at(place, spec), spec.stage_channels if place == "B" else spec.channels, strict=True))


def by_stride(place: str, spec: Spec, outputs: Outputs) -> dict[int, Tensor]:
    """Return the maps (N, C, H, W) of a record at a place, by stride; none if they were not computed."""
    maps = outputs.stages if place == "B" else outputs.features
    return dict(zip(strides_at(place, spec), maps, strict=True)) if maps else {}


def strides_served(strategy: str, student: Spec, teacher: Spec) -> tuple[int, ...]:
    """Return the strides of the teacher's maps that the student's maps can replace.

    These are the common strides. In a neck the coarser ones follow, as long as each is twice the one before: these maps
    are made from the student's coarsest one by halving it.

    Examples:
        >>> spec = Spec(channels=(64,) * 4, strides=(8, 16, 32, 64), num_anchors=1, num_classes=3,
        ...             stage_channels=(128, 256, 512), stage_strides=(8, 16, 32))
        >>> strides_served("B2N", spec, spec), strides_served("N2B", spec, spec)
        ((8, 16, 32, 64), (8, 16, 32))
    """
    own, theirs = strides_at(strategy[0], student), strides_at(strategy[-1], teacher)
    served = [stride for stride in theirs if stride in own]
    while strategy[-1] == "N" and own and (coarser := 2 * max((*own, *served))) in theirs:
        served.append(coarser)
    return tuple(served)


def misplaced(strategies: Sequence[str], student: Spec, teacher: Spec) -> list[str]:
    """Describe the strategies without a stride that the student's maps could serve, naming both sides."""
    return [
        f"the strategy {name} needs a common stride: the student {student.name} has {strides_at(name[0], student)} at "
        f"its {PLACES[name[0]]}, the teacher {teacher.name} {strides_at(name[-1], teacher)} at its {PLACES[name[-1]]}"
        for name in strategies
        if not strides_served(name, student, teacher)
    ]


def places_read(strategies: Sequence[str], student: Spec, teacher: Spec, every: bool) -> frozenset[str]:
    """Return the parts of the teacher's record that strategies read: maps at strides that the student's do not replace.

    Args:
        strategies: their names.
        student: the student's Spec.
        teacher: the teacher's Spec.
        every: whether the others are read, too.
    """
    places = {
        name[-1]
        for name in strategies
        if every or set(strides_at(name[-1], teacher)).difference(strides_served(name, student, teacher))
    }
    return frozenset({"N": "features", "B": "stages"}[place] for place in places)


class Transform(nn.Module):
    """Turn a student's maps into a teacher's maps at a place: Dist2's f_trans of one strategy.

    The poster does not describe it; this is our reading. Into a neck it is a 3x3 convolution per level, whose outputs
    have a sign like a pyramid's. Into a backbone it is a 1x1 convolution and batch normalisation per stage, and a
    ReLU where the teacher's stage ends in one. Levels coarser than the student's stages are made from its last one by
    3x3 convolutions of stride 2, with a ReLU between two.

    Args:
        strategy: where the student's maps are taken and where they enter the teacher: ``"N2N"``, ``"B2B"``, ``"B2N"``,
            ``"N2B"``.
        student: the student's Spec.
        teacher: the teacher's Spec.
    """

    def __init__(self, strategy: str, student: Spec, teacher: Spec):
        super().__init__()
        self.source, self.student = strategy[0], student
        own, theirs = channels_at(strategy[0], student), channels_at(strategy[-1], teacher)
        rectified = dict(zip(teacher.stage_strides, teacher.stage_relu, strict=False))  # none if unknown
        self.layers = nn.ModuleDict()
        for stride in strides_served(strategy, student, teacher):
            if stride in own and strategy[-1] == "B":
                layer: nn.Module = _stage_transform(own[stride], theirs[stride], relu=rectified.get(stride, False))
            elif stride in own:
                layer = nn.Conv2d(own[stride], theirs[stride], kernel_size=3, padding=1)
            else:
                before = own.get(stride // 2) or theirs[stride // 2]
                layer = nn.Conv2d(before, theirs[stride], kernel_size=3, stride=2, padding=1)
            self.layers[str(stride)] = layer

    def forward(self, student: Outputs) -> dict[int, Tensor]:
        """Turn a student's record into maps for the teacher, each (N, C, H, W), by stride."""
        own = by_stride(self.source, self.student, student)
        made: dict[int, Tensor] = {}
        for stride, layer in ((int(name), layer) for name, layer in self.layers.items()):
            if stride in own:
                source = own[stride]
            else:  # halved, by the layer's own stride
                source = own[stride // 2] if stride // 2 in own else F.relu(made[stride // 2])
            made[stride] = layer(source)
        return made


def _stage_transform(own: int, theirs: int, relu: bool) -> nn.Sequential:
    layers = nn.Conv2d(own, theirs, kernel_size=1, bias=False), nn.BatchNorm2d(theirs)
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


def through_teacher(place: str, maps: Mapping[int, Tensor], teacher: "Detector", outputs: Outputs) -> Outputs:
    """Run the student's maps through the rest of a frozen teacher; only the maps get a gradient.

    Args:
        place: where they enter: ``"B"`` before the neck, ``"N"`` before the head.
        maps: (N, C, H, W) by stride, of the shapes of the teacher's own there. At other strides the teacher's own maps
            are used.
        teacher: in ``eval()``, its parameters frozen.
        outputs: the teacher's record of the same images, a constant; without its own maps at strides that have one.
    """
    own = by_stride(place, teacher.spec, outputs)
    entering = [maps[stride] if stride in maps else own[stride].detach() for stride in strides_at(place, teacher.spec)]
    features = teacher.neck(entering) if place == "B" else entering
    # The padded batch may be smaller than its cells: its sides need not be multiples of the stride.
    height, width = outputs.size or (side * teacher.spec.strides[0] for side in features[0].shape[-2:])
    found = teacher.head(features, (height, width))
    anchors, sizes = outputs.anchors or found.anchors, outputs.image_sizes or found.image_sizes
    return replace(found, anchors=anchors, image_sizes=sizes)
