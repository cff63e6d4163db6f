"""A student that starts with the neck and the head of its teacher."""

from dataclasses import dataclass
from typing import Any

from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.methods.base import anchor_differences
from understudy.outputs import Spec
from understudy.pairing import Pairing

CLASS_LAYERS = ("head.classification_head.cls_logits.", "roi_heads.box_predictor.")
"""Layers whose outputs are classes, by torchvision's names."""
COARSE_LAYERS = "backbone.fpn.extra_blocks."
"""Layers of a neck that make the levels coarser than any stage, by torchvision's names."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a student took over from its teacher.

    Attributes:
        taken: names of the tensors that it took, in the plain network.
        own: names of the other tensors of its neck and head, which start as they always do.
        parameters: numbers in those that it took.
    """

    taken: tuple[str, ...]
    own: tuple[str, ...]
    parameters: int

    @property
    def note(self) -> str:
        """One line on what was taken."""
        every = len(self.taken) + len(self.own)
        return (
            f"the student starts with {len(self.taken)} of the {every} tensors of its neck and head "
            f"({self.parameters} parameters) from the teacher"
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain values, with every name."""
        return {"taken": list(self.taken), "own": list(self.own), "parameters": self.parameters}


def inherit(student: Detector, teacher: Detector, pairing: Pairing) -> Inheritance:
    """Let a student's neck and head start as its teacher's, where names and shapes agree.

    A tensor of the same name means the same only if the detectors are built alike: the neck is taken where levels and
    stages have the same strides (its coarsest levels where they are made alike, too), the head where also family,
    anchors and box code are the same, and the layers that tell classes apart where the classes are the same ones in
    the same order.

    Args:
        student: changed in place.
        teacher: not changed.
        pairing: of the two.

    Raises:
        UserError: nothing fits.
    """
    own, theirs = student.network.state_dict(), teacher.network.state_dict()
    same_neck, same_coarse = (fact(student) == fact(teacher) for fact in (_neck, _coarse_levels))
    same_head = _head(student) == _head(teacher) and not anchor_differences(student.spec, teacher.spec, raw=True)
    every = tuple(range(len(pairing.classes)))
    same_classes = not pairing.unknown and not pairing.unused and pairing.teacher_labels == every
    names = [name for name in own if not name.startswith("backbone.body.")]
    misfits = {
        _layer(name)
        for name in names
        if not (same_neck and (same_head or name.startswith("backbone.")))
        or (name.startswith(CLASS_LAYERS) and not same_classes)
        or (name.startswith(COARSE_LAYERS) and not same_coarse)
        or name not in theirs
        or own[name].shape != theirs[name].shape
    }
    taken = tuple(name for name in names if _layer(name) not in misfits)
    if not any(own[name].dim() > 1 for name in taken):  # no layer but, perhaps, a few scales
        raise UserError(
            f"inherit=true: nothing of the teacher {teacher.spec.name} fits into the student {student.spec.name}: the "
            f"student has {_described(student.spec)}, the teacher {_described(teacher.spec)}. Build the student like "
            "the teacher (the family, detector.neck_channels), or leave inherit out."
        )
    student.network.load_state_dict({name: theirs[name] for name in taken}, strict=False)
    return Inheritance(
        taken, tuple(name for name in names if name not in taken), sum(theirs[name].numel() for name in taken)
    )


def _layer(name: str) -> str:
    """The layer of a tensor, which is taken as a whole: a bias means nothing without its weights."""
    return name.rpartition(".")[0]


def _neck(detector: Detector) -> tuple[Any, ...]:
    return detector.spec.strides, detector.spec.stage_strides


def _coarse_levels(detector: Detector) -> tuple[Any, ...]:
    """What the coarsest levels are made from, and whether a ReLU comes between two."""
    made = getattr(getattr(detector.network.backbone, "fpn", None), "extra_blocks", None)
    if isinstance(made, LastLevelP6P7):
        return "on_output" if made.use_P5 else "on_input", True
    return getattr(made, "source", None), getattr(made, "relu", None)


def _head(detector: Detector) -> tuple[Any, ...]:
    """What the outputs of a head mean beside its weights."""
    spec, head = detector.spec, getattr(detector.network, "head", None)
    return spec.family, spec.num_anchors, spec.box_code, spec.box_size, getattr(head, "norm_on_bbox", None)


def _described(spec: Spec) -> str:
    return f"the channels {spec.channels} at the strides {spec.strides}"
