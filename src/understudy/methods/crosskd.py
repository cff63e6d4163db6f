"""CrossKD: cross-head knowledge distillation (Wang et al., CVPR 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PositiveInt
from torch import Tensor

from understudy.boxes import box_code
from understudy.functional import align_scale, gap_weighted_loss, softened_divergence, total_centerness
from understudy.methods.base import Layers, Method
from understudy.methods.compatibility import differences
from understudy.networks.geometry import paired_giou, paired_iou
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Spec, TowerMaps, Truth, flatten_levels


class CrossKD(Method):
    r"""The student's head features pass through the rest of the teacher's head; predictions must match the teacher's.

    A map inside each of the two towers of the student's head gets the mean and the deviation of the teacher's map,
    channel by channel, and runs through the rest of the teacher's frozen head: after 3 of 4 convolutions (FCOS: 2),
    the teacher's last one (two) and its predictor. These crossed predictions, :math:`C`,
    are compared with the teacher's own. The student's own predictions learn from the labels alone.

    .. math::
        L_\text{class} = \frac{1}{P} \sum_r \sum_k \left|\sigma(z^C_{r k}) - \sigma(z^T_{r k})\right|
        \operatorname{BCE}\left(\sigma(z^C_{r k}), \sigma(z^T_{r k})\right) \qquad
        L_\text{box} = \frac{1}{P} \sum_r \max_k \sigma(z^T_{r k}) \, d\left(b^C_r, b^T_r\right)

    .. math::
        \operatorname{BCE}(p, q) = -q \log p - (1 - q) \log(1 - p)

    The sums are over all anchors of the batch that are not ignored. :math:`z` are class logits, :math:`b` boxes, and
    :math:`P` is the number of anchors assigned to an object; for a student with centre-ness (FCOS) it is the sum of the
    true centre-ness of these anchors.

    The distance :math:`d` of two boxes depends on the box code. For deltas to anchors (RetinaNet) it is one minus the
    GIoU, for distances from points (FCOS) minus the logarithm of the IoU. For distributions (GFL) it is the
    Kullback-Leibler divergence of a side, averaged over the four sides, and the box term is divided by the sum of its
    weights instead of :math:`P`.

    Evidence:
        paper: CrossKD: Cross-Head Knowledge Distillation for Object Detection.
        code: Written from the formulas. Weights, divisors, the logarithm of the IoU and the ``convolution`` after which
            the maps cross are the authors' (their ``reused_teacher_head_idx``, which counts from 1).
        ours: The divisor is at least 1. An empty box of the teacher adds 0 to a logarithm.
        weight: The authors', for RetinaNet, FCOS and GFL. For other families they must be given.
        caution: The sums omit ignored anchors. Unlabelled images, whose anchors are all ignored, therefore affect only
            the statistics of the maps. The authors clip the gradient of an FCOS (``optimizer.clip_norm=35``). It runs
            the teacher's layers, so recorded outputs of the teacher are not enough.
    """

    name = "crosskd"
    terms = ("class", "box")
    weights = {
        "retinanet": {"class": 1.0, "box": 1.0},
        "fcos": {"class": 0.4, "box": 0.75},
        "gfl": {"class": 1.0, "box": 4.0},
    }
    source = "Wang et al., CVPR 2024; weights and convolutions from the authors' code"
    checked = "authors' code, jbwang1997/CrossKD @87e156a: crossing and losses run on the same tensors, values to 1e-7"
    reads = {
        "class": ("class_logits", "assignment", "layers"),
        "box": ("class_logits", "boxes", "assignment", "layers"),
    }

    class Options(Method.Options):
        """The options of CrossKD."""

        convolution: PositiveInt | None = None
        """Number of the convolution, counted from 1, whose output (before its ReLU) crosses over; the teacher runs the
        later ones. None: the authors' choice, 3 of 4, or 2 of 4 for a detector with centre-ness (FCOS)."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        self.index = _index(student, self.options)
        self.keeps = (self.index,)

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Require heads of one family with towers of the same width, since there is no adapter."""
        if not (student.dense and teacher.dense):  # already refused because of `reads`
            return {}
        index, counts = _index(student, options), (len(student.tower_channels), len(teacher.tower_channels))
        reasons = differences(student, teacher, lambda spec: f"a head of the family {spec.family}")
        if index >= min(counts):
            reasons.append(
                f"the student {student.name} has {counts[0]} convolutions in each tower of its head, the teacher "
                f"{teacher.name} {counts[1]}; both need convolution {index + 1}"
            )
        elif not reasons:
            reasons = differences(student, teacher, lambda spec: f"{spec.tower_channels[index]} channels in its head")
        return dict.fromkeys(cls.terms, reasons)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``crosskd_class`` and ``crosskd_box``, of all levels together."""
        crossed, counted = self.crossed(layers := self.both_detectors(layers)), truth.gt_index > -2
        target = flatten_levels(teacher.class_logits).detach()
        gaps = gap_weighted_loss(flatten_levels(crossed.class_logits), target).where(counted, 0.0)
        weights = target.amax(-1).float().sigmoid().where(counted, 0.0)
        boxes = (weights * self._boxes(crossed, teacher, layers).where(counted, 0.0)).sum()
        positives = total_centerness(student.anchors, truth) if self.student.centerness else (truth.gt_index >= 0).sum()
        amount = averaged_over_processes(positives)
        mass = averaged_over_processes(weights.sum(), 1e-6) if box_code(self.teacher).distributed else amount
        terms = {"crosskd_class": gaps.sum() / amount, "crosskd_box": boxes / mass}
        return {name: terms[name] for name in (f"crosskd_{term}" for term in self.terms)}

    def crossed(self, layers: Layers) -> Outputs:
        """Run the end of the teacher's head on the student's maps; the record is reduced like the teacher's."""
        own = layers.student.tower_maps(layers.student_outputs, self.index)
        theirs = layers.teacher.tower_maps(layers.teacher_outputs, self.index)
        towers = (own.classes, theirs.classes), (own.boxes, theirs.boxes)
        aligned = TowerMaps(*([align_scale(*pair) for pair in layers.paired(*tower)] for tower in towers))
        crossed = layers.teacher.head_from(aligned, self.index, layers.teacher_outputs)
        return layers.pairing.teacher_record(crossed) if layers.pairing else crossed

    def _boxes(self, crossed: Outputs, teacher: Outputs, layers: Layers) -> Tensor:
        """Compute the distance of the box of every anchor from the teacher's, (N, R)."""
        code = box_code(self.teacher)
        if code.distributed:
            own, theirs = (flatten_levels(record.box_raw).unflatten(-1, (4, -1)) for record in (crossed, teacher))
            return softened_divergence(own, theirs).mean(-1)
        own, theirs = (flatten_levels(layers.teacher.decode(record)) for record in (crossed, teacher))
        if code.anchored:
            return 1 - paired_giou(own, theirs.detach())
        filled = paired_iou(theirs, theirs)  # 1, and 0 for an empty box
        return -paired_iou(own, theirs.detach()).clamp(min=1e-6).log() * filled.detach()


def _index(student: Spec, options: CrossKD.Options) -> int:
    return (options.convolution or (2 if student.centerness else 3)) - 1  # detectors count from 0, papers from 1
