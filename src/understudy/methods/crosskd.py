"""CrossKD: cross-head knowledge distillation (Wang et al., CVPR 2024)."""

from typing import Any

from torch import Tensor

from understudy.boxes import paired_giou, paired_iou
from understudy.functional import align_scale, gap_weighted_loss, softened_divergence, total_centerness
from understudy.methods.base import Layers, Method, differences, prediction_differences
from understudy.outputs import Outputs, Spec, TowerMaps, Truth, flatten_levels


class CrossKD(Method):
    """What the teacher's head makes of the student's head features is to be what it makes of its own.

    A map inside each of the two towers of the student's head takes the scale of the teacher's map there and runs
    through the rest of the teacher's head. The student's own predictions learn from the labels alone.

    ``class``: the distance of the scores times their cross-entropy, summed over classes and anchors. ``box``: for each
    anchor the divergence of its sides as distributions, averaged over the four (GFL), one minus the GIoU (RetinaNet)
    or minus the logarithm of the IoU (FCOS), weighted by the teacher's highest score there, summed. Both are divided by
    the positives of the batch, of an FCOS by the sum of their true centre-ness; but ``box`` of a GFL by the sum of its
    weights. Ignored anchors count nowhere, so unlabelled images, of which all are ignored, take part in the scale of
    the maps alone. All as in the authors' code; ours: the positives count as 1 at least, and an empty box of the
    teacher's adds 0 to a logarithm.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        convolution: number, from 0, of that whose map is taken, before its ReLU; None: 3, of an FCOS 2 (the authors').

    Raises:
        UserError: the two are not of one family, or their heads, anchors or classes do not fit.
    """

    name = "crosskd"
    terms = ("class", "box")
    weights = {  # noqa: RUF012
        "retinanet": {"class": 1.0, "box": 1.0},
        "fcos": {"class": 0.4, "box": 0.75},
        "gfl": {"class": 1.0, "box": 4.0},
    }
    source = "Wang et al., CVPR 2024; weights and convolutions from the authors' code"
    reads = ("class_logits", "box_raw", "truth", "layers")
    uses_layers = True

    def __init__(self, student: Spec, teacher: Spec, *, convolution: int | None = None):
        super().__init__(student, teacher, convolution=convolution)
        self.number = _number(student, convolution)
        self.keeps = (self.number,)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Both must be of one family, with the same anchors and heads of the same width: there is no adapter."""
        number = _number(student, options.get("convolution"))
        counts = len(student.tower_channels), len(teacher.tower_channels)
        reasons = differences(student, teacher, lambda spec: f"the head of a {spec.family}")
        if not 0 <= number < min(counts):
            has = f"{student.name} has {counts[0]} convolutions in a tower of its head, {teacher.name} {counts[1]}"
            reasons.append(f"{has}; both need number {number}, counted from 0")
        elif not reasons:
            reasons = differences(student, teacher, lambda spec: f"{spec.tower_channels[number]} channels in its head")
        reasons += prediction_differences(student, teacher)
        return dict.fromkeys(cls.terms, "; ".join(reasons)) if reasons else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]
        """Compute ``crosskd_class`` and ``crosskd_box``, of all levels together."""
        crossed, target = self.crossed(layers), flatten_levels(teacher.class_logits).detach()
        counted = truth.gt_index > -2
        gaps = gap_weighted_loss(flatten_levels(crossed.class_logits), target).where(counted, 0.0)
        weights = target.amax(-1).float().sigmoid().where(counted, 0.0)
        boxes = (weights * self._boxes(crossed, teacher, layers).where(counted, 0.0)).sum()
        fcos, sides = self.student.family == "fcos", self.teacher.box_code == "distributions"
        amount = (total_centerness(student.anchors, truth) if fcos else (truth.gt_index >= 0).sum()).clamp(min=1)
        mass = weights.sum().clamp(min=1e-6) if sides else amount
        return {"crosskd_class": gaps.sum() / amount, "crosskd_box": boxes / mass}

    def crossed(self, layers: Layers) -> Outputs:
        """Run the end of the teacher's head on the student's maps: a record as ``forward`` has of the teacher."""
        own = layers.student.tower_maps(layers.student_outputs, self.number)
        theirs = layers.teacher.tower_maps(layers.teacher_outputs, self.number)
        towers = (own.classes, theirs.classes), (own.boxes, theirs.boxes)
        aligned = TowerMaps(*([align_scale(*pair) for pair in layers.paired(*tower)] for tower in towers))
        crossed = layers.teacher.head_from(aligned, self.number, layers.teacher_outputs)
        return layers.pairing.teacher_record(crossed) if layers.pairing else crossed

    def _boxes(self, crossed: Outputs, teacher: Outputs, layers: Layers) -> Tensor:
        """How far the box of every anchor is from the teacher's, (N, R)."""
        if self.teacher.box_code == "distributions":
            own, theirs = (flatten_levels(record.box_raw).unflatten(-1, (4, -1)) for record in (crossed, teacher))
            return softened_divergence(own, theirs).mean(-1)
        own, theirs = (flatten_levels(layers.teacher.decode(record)) for record in (crossed, teacher))
        if self.teacher.box_code == "deltas":
            return 1 - paired_giou(own, theirs.detach())
        filled = paired_iou(theirs, theirs)  # 1, and 0 for an empty box
        return -paired_iou(own, theirs.detach()).clamp(min=1e-6).log() * filled.detach()


def _number(student: Spec, convolution: int | None) -> int:
    return (2 if student.family == "fcos" else 3) if convolution is None else convolution
