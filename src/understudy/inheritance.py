"""Initialise a student's neck and head with those of its teacher."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.methods.compatibility import anchor_differences
from understudy.outputs import Spec
from understudy.pairing import Pairing

CLASS_LAYERS = ("head.classification_head.cls_logits.", "roi_heads.box_predictor.")
"""Layers whose outputs are class scores, by torchvision's names."""
COARSE_LAYERS = "backbone.fpn.extra_blocks."
"""Layers of a neck that compute the levels coarser than any stage, by torchvision's names."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """The tensors that a student inherited from its teacher.

    Attributes:
        taken: names of the inherited tensors, in the plain network.
        own: names of the other tensors of neck and head, which keep the student's own initialisation.
        parameters: number of inherited values.
    """

    taken: tuple[str, ...]
    own: tuple[str, ...]
    parameters: int

    @property
    def note(self) -> str:
        """One line for the user."""
        total = len(self.taken) + len(self.own)
        return (
            f"the student inherits {len(self.taken)} of the {total} tensors of its neck and head "
            f"({self.parameters} parameters) from the teacher"
        )

    def facts(self) -> dict[str, Any]:
        """Return the names and the number as plain values."""
        return {"taken": list(self.taken), "own": list(self.own), "parameters": self.parameters}


def inherit(student: Detector, teacher: Detector, pairing: Pairing) -> Inheritance:
    """Copy the teacher's neck and head into the student, layer by layer where names and shapes agree.

    Tensors of the same name are compatible only under these conditions:

    * neck: the same strides of levels and stages; for its coarsest levels also the same construction;
    * head: also the same family, anchors and box code;
    * layers of class scores: also the same classes in the same order.

    Args:
        student: changed in place.
        teacher: not changed.
        pairing: of the two.

    Raises:
        UserError: no layer fits.
    """
    own, theirs = student.network.state_dict(), teacher.network.state_dict()
    every = tuple(range(len(pairing.classes)))
    same_classes = not pairing.unknown and not pairing.unused and pairing.teacher_labels == every
    names = [name for name in own if not name.startswith("backbone.body.")]
    taken = fitting(student, teacher, names, same_classes=same_classes)
    if not any(own[name].dim() > 1 for name in taken):  # at most a few scales, but no whole layer
        raise UserError(
            f"inherit=true: no layer of the teacher's neck and head fits the student. The student {student.spec.name} "
            f"has {_described(student.spec)}, the teacher {teacher.spec.name} {_described(teacher.spec)}. Use the "
            "teacher's family and detector.neck_channels for the student, or leave inherit out."
        )
    student.network.load_state_dict({name: theirs[name] for name in taken}, strict=False)
    return Inheritance(
        taken, tuple(name for name in names if name not in taken), sum(theirs[name].numel() for name in taken)
    )


def fitting(student: Detector, source: Detector, names: Collection[str], *, same_classes: bool) -> tuple[str, ...]:
    """Return the names of a student's tensors for which those of another detector have the same shape and meaning.

    Args:
        student: the detector that takes them.
        source: the other one.
        names: those to choose from, in the plain network.
        same_classes: whether both have the same classes in the same order.
    """
    own, theirs = student.network.state_dict(), source.network.state_dict()
    same_neck, same_coarse = (fact(student) == fact(source) for fact in (_neck, _coarse_levels))
    same_head = same_neck and has_same_head(student, source)
    misfits = {
        _layer(name)
        for name in names
        if not (same_head or name.startswith("backbone.body.") or (same_neck and name.startswith("backbone.")))
        or (name.startswith(CLASS_LAYERS) and not same_classes)
        or (name.startswith(COARSE_LAYERS) and not same_coarse)
        or name not in theirs
        or own[name].shape != theirs[name].shape
    }
    return tuple(name for name in names if _layer(name) not in misfits)


def has_same_head(student: Detector, source: Detector) -> bool:
    """Return whether the outputs of two heads mean the same, apart from their classes."""
    return _head(student) == _head(source) and not anchor_differences(student.spec, source.spec, raw=True)


def _layer(name: str) -> str:
    """Return the layer of a tensor; a layer is inherited completely or not at all."""
    return name.rpartition(".")[0]


def _neck(detector: Detector) -> tuple[Any, ...]:
    return detector.spec.strides, detector.spec.stage_strides


def _coarse_levels(detector: Detector) -> tuple[Any, ...]:
    """Return the input of the coarsest levels, and whether a ReLU comes between two of them."""
    made = getattr(getattr(detector.network.backbone, "fpn", None), "extra_blocks", None)
    if isinstance(made, LastLevelP6P7):
        return "on_output" if made.use_P5 else "on_input", True
    return getattr(made, "source", None), getattr(made, "relu", None)


def _head(detector: Detector) -> tuple[Any, ...]:
    """Everything that gives a head's outputs their meaning, except its weights."""
    spec, head = detector.spec, getattr(detector.network, "head", None)
    return spec.family, spec.num_anchors, spec.box_code, spec.box_size, getattr(head, "norm_on_bbox", None)


def _described(spec: Spec) -> str:
    return f"channels {spec.channels} at strides {spec.strides}"
