"""Checks of what a training loop gives to the learner: mistakes that train on, but train nothing or the wrong thing."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from understudy.detectors import Detector
from understudy.errors import UserError
from understudy.outputs import Origin, Outputs, Target
from understudy.text import listed

CHECK_EVERY = 100
"""Calls of the learner between two checks of values, which wait for the device; the first call is checked, too."""

LOWEST, HIGHEST = -0.5, 2.0
"""Limits of pixels that are in 0..1 apart from an augmentation; normalised images and those in 0..255 exceed them."""

_BY_MODE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


# --- in every call: nothing here reads a value of a tensor ------------------------------------------------------------


def check_modes(student: Detector, training: bool, teacher: Detector | None, teacher_outputs: Outputs | None) -> None:
    """Check the modes of student and teacher, and that gradients are computed.

    Args:
        student: the detector in training.
        training: whether the learner itself is in ``train()``; in ``eval()`` a loss can be measured.
        teacher: the teacher, if the learner has it.
        teacher_outputs: its record.

    Raises:
        UserError: a mode is wrong, or the teacher is the student.
    """
    if training and not torch.is_grad_enabled():
        raise UserError(
            "The learner is called without gradients (torch.no_grad or inference_mode), so nothing can be trained: "
            "only the teacher runs without them. To measure a loss, call learner.eval() first."
        )
    if training and not student.training and _depends_on_mode(student):
        raise UserError(
            f"The student {student.spec.name} is in eval() while it is trained: call student.train() after each "
            "evaluation. To train it in eval() on purpose, or to measure a loss, call learner.eval() first."
        )
    origin = teacher_outputs.origin if teacher_outputs else None
    if (teacher and teacher.training) or (origin and origin.training):
        raise UserError(
            "The teacher's outputs were computed in train(), where they depend on the other images of the batch: call "
            "teacher.eval() first."
        )
    if teacher and next(teacher.parameters(), None) is next(student.parameters(), student):
        raise UserError("The student is its own teacher, so there is nothing to learn from it: pass another detector.")


def _depends_on_mode(student: Detector) -> bool:
    """Return whether a layer that is trained, or drops values, computes something else in ``train()``."""
    layers = (layer for layer in student.modules() if isinstance(layer, _BY_MODE))
    return any(all(weight.requires_grad for weight in layer.parameters()) for layer in layers)


# --- now and then: these wait for the device --------------------------------------------------------------------------


def check_values(
    student: Detector,
    images: Tensor,
    targets: Sequence[Target],
    labelled: Sequence[bool] | None,
    teacher_outputs: Outputs | None,
) -> None:
    """Check the values of a batch.

    Args:
        student: the detector in training.
        images: as given to the learner.
        targets: likewise.
        labelled: likewise.
        teacher_outputs: the teacher's whole record.

    Raises:
        UserError: listing every fault.
    """
    own, theirs = Origin.of(images, student.training), teacher_outputs.origin if teacher_outputs else None
    faults = list(_pixel_faults("the images", own))
    if theirs:
        faults += [*_pixel_faults("the images of the teacher's outputs", theirs), *_order_faults(own, theirs)]
    for number, target in enumerate(targets):
        if labelled is None or labelled[number]:
            faults += _target_faults(f"targets[{number}]", target, student.num_labels, images.shape[-2:])
    if faults:
        raise UserError.listing("Invalid input of the learner:", faults)


def check_other_than_student(outputs: Outputs, teacher_outputs: Outputs) -> None:
    """Check that the teacher's features are not the student's own; in a later step, since a copy may be the start.

    Raises:
        UserError: they are equal.
    """
    if not teacher_outputs.features:
        return
    own, theirs = outputs.features[-1], teacher_outputs.features[-1]
    if own.shape == theirs.shape and torch.equal(own, theirs.to(own)):
        raise UserError(
            "The teacher's features equal the student's, after steps of training: the outputs are the student's own, "
            "so there is nothing to learn from them. Pass those of another detector."
        )


def _pixel_faults(whose: str, origin: Origin) -> Iterator[str]:
    if not origin.pixels.is_floating_point() or not origin.pixels.numel():
        return
    low, high = (float(value) for value in origin.pixels.aminmax())
    if not LOWEST <= low <= high <= HIGHEST:  # also if one is nan
        remedy = "divide them by 255" if low >= 0 and high > HIGHEST else "a detector normalises them itself"
        yield f"{whose} have values from {low:.4g} to {high:.4g}: expected 0 to 1 ({remedy})"


def _order_faults(own: Origin, theirs: Origin) -> Iterator[str]:
    """Find an image whose place has another image of the batch; the teacher may see other colours than the student."""
    if own.pixels.shape != theirs.pixels.shape:
        return
    first, second = (origin.pixels.flatten(1).to(own.pixels) for origin in (own, theirs))
    same = (first[:, None] == second[None]).all(-1).tolist()
    for number, row in enumerate(same):
        if any(row) and not row[number]:
            yield (
                f"the teacher's outputs are in another order: image {number} of the batch is image {row.index(True)} "
                "of theirs; compute them from the same batch"
            )
            return


def _target_faults(where: str, target: Target, labels: int | None, size: Sequence[int]) -> Iterator[str]:
    if missing := [key for key in ("boxes", "labels") if key not in target]:
        yield f"{where} has no {' and no '.join(missing)}: expected boxes (M, 4) and labels (M,)"
        return
    boxes, classes = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or classes.shape != boxes.shape[:1]:
        shapes = f"{tuple(boxes.shape)} and {tuple(classes.shape)}"
        yield f"{where}: boxes and labels have the shapes {shapes}, expected (M, 4) and (M,)"
        return
    if not len(boxes):
        return
    low, high = (int(value) for value in classes.aminmax())
    if low < 0 or (labels is not None and high >= labels):
        most = "" if labels is None else f" to {labels - 1}"
        yield f"{where}: labels from {low} to {high}, expected 0{most} (there is no label for the background)"
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(1)
    right = boxes.isfinite().all(1) & (x1 < x2) & (y1 < y2) & (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)
    wrong = torch.where(~right)[0].tolist()
    expected = f"expected xyxy in pixels of the padded batch, {width} wide and {height} high"
    if wrong:
        shown = [round(value, 2) for value in boxes[wrong[0]].tolist()]
        yield f"{where}: box {wrong[0]} is {shown}, {expected}, with x1 < x2 and y1 < y2 (not xywh)"
    elif float(boxes.max()) <= 1:
        yield f"{where}: every box is within 0 to 1, {expected}, not fractions"


# --- on request -------------------------------------------------------------------------------------------------------


def check_optimizer(learner: nn.Module, optimizer: Optimizer) -> None:
    """Check that an optimizer holds every trained parameter of a learner: those of the student and of the methods.

    Args:
        learner: the learner.
        optimizer: any.

    Raises:
        UserError: naming the parameters that it lacks.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    if lacking := [name for name, parameter in trained.items() if id(parameter) not in held]:
        raise UserError(
            f"The optimizer lacks {len(lacking)} of the {len(trained)} trained parameters, which would keep their "
            f"initial values: {listed(lacking, 4)}. Build it from learner.parameters(), after the learner."
        )
