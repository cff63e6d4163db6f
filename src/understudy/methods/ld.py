"""LD: localisation distillation (Zheng et al., CVPR 2022)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from understudy.boxes import Places, box_code, chosen, positives
from understudy.functional import (
    Nearness,
    imitated_cells,
    imitation_loss,
    side_divergence,
    softened_divergence,
    valuable_region,
)
from understudy.functional.precision import at_least_float32
from understudy.methods.base import Layers, Method
from understudy.methods.compatibility import differences, neither_dense
from understudy.networks.processes import averaged_over_processes
from understudy.outputs import Outputs, Spec, Truth, flat_anchors


class LD(Method):
    r"""The student imitates the teacher's distribution over the position of each box side, including its uncertainty.

    Both detectors predict each side as a distribution over distances, as a GFL does. :math:`D_r` is the divergence of
    the teacher's softened distributions from the student's at anchor :math:`r`, averaged over bins and sides.
    ``location`` compares them at the anchors assigned to an object, :math:`R`, and ``vlr`` in the valuable localisation
    region around the objects, :math:`V`. ``class`` compares softened class scores on :math:`R`. ``feature``, off by
    default, is a mean squared difference in the cells of ``fine_grained``, :math:`M_l`.

    .. math::
        D_r = \frac{\tau^2}{4 B} \sum_{s = 1}^4 \sum_{i = 1}^B p^T_{r s i} \log \frac{p^T_{r s i}}{p^S_{r s i}} \qquad
        p_{r s} = \operatorname{softmax}(y_{r s} / \tau)

    .. math::
        L_\text{location} = \frac{I}{N} \sum_{r \in R} \max_k \sigma(z^S_{r k}) \, D_r \qquad
        L_\text{vlr} = \frac{I}{4 N} \sum_{r \in V} w_r D_r

    .. math::
        L_\text{class} = \sum_l \frac{\tau_c^2}{K |R_l|} \sum_{r \in R_l} \sum_k
        q^T_{r k} \log \frac{q^T_{r k}}{q^S_{r k}} \qquad
        q_r = \operatorname{softmax}(z_r / \tau_c)

    .. math::
        L_\text{feature} = \sum_{l : R_l \ne \emptyset} \frac{1}{C |M_l|} \sum_{(n, h, w) \in M_l} \sum_c
        \left(F^S_l - F^T_l\right)^2

    :math:`N` is the number of labelled images, and :math:`I` is ``images_per_process``. :math:`y` are the logits of the
    :math:`B` bins of a side, :math:`z` class logits, :math:`\tau` and :math:`\tau_c` the two temperatures, and
    :math:`R_l` the anchors of :math:`R` on level :math:`l`. No gradient flows through the
    student's highest score in ``location``. An anchor is in :math:`V` if its ``nearness`` to an object is below the
    threshold from which on ATSS assigns anchors to it, and at least a quarter of this threshold. :math:`w_r` is its IoU
    with the object, the highest of several.

    Evidence:
        paper: Localization Distillation for Dense Object Detection; for GFL.
        code: Reductions, temperatures and weights are the authors'. There, ``location`` and ``vlr`` are sums over the
            anchors of all images of a process, 2 in the configuration of a ResNet-50, 3 in those of a ResNet-18. The
            authors' README warns against more than 3. The paper bounds the region by the distance IoU; in the
            authors' code, and here by default, the intersection in it is divided by the area of the anchor instead of
            the union (``nearness``).
        ours: ``images_per_process``: the two terms are those sums for 2 images, however many a process has.
        weight: The 42.1 AP that the authors' README states for a ResNet-50 are of ``location``, ``vlr`` and ``class``.
            Their configuration of that pair also has ``feature``, with the weight 2 (``feature_weight=2``).
        caution: ``location`` and ``vlr`` grow with the number of objects per image.
        related: ``fine_grained`` has the region of ``feature``, with an adapter, and another reduction and weight. The
            other regions of the authors' code for this term are not implemented.
    """

    name = "ld"
    terms = ("location", "vlr", "class")
    optional_terms = ("feature",)
    weights = {"gfl": {"location": 0.25, "vlr": 0.25, "class": 10.0}}
    source = "Zheng et al., CVPR 2022; reductions, temperatures and weights from the authors' code"
    checked = "authors' code, HikariTJU/LD @4287990: run on the same tensors, values to 1e-8"
    reads = {
        "location": ("class_logits", "boxes", "assignment"),
        "vlr": ("boxes", "student_anchors", "assignment"),
        "class": ("class_logits", "assignment"),
        "feature": ("features", "student_anchors", "objects", "assignment"),
    }

    class Options(Method.Options):
        """The options of LD."""

        temperature: PositiveFloat = 10.0
        """Divides the logits of the sides; 10 is the authors'."""
        class_temperature: PositiveFloat = 2.0
        """Divides the class logits; 2 is the authors'."""
        normaliser: Literal["sum", "positives"] = "sum"
        """``"sum"`` as in the authors' code, or divide ``location`` and ``vlr`` by the ``"positives"`` of the batch,
        the anchors assigned to an object (ours), which needs weights about a hundred times as large."""
        images_per_process: PositiveInt | None = 2
        """Number of images that the ``"sum"`` of ``location`` and ``vlr`` is scaled to: with N labelled ones it is
        divided by N / 2. 2 belongs to the authors' weights. None: the sum over a process' images, as in their code."""
        nearness: Nearness = "code"
        """What bounds the region of ``vlr``: as in the authors' ``"code"``, to which their weights and results belong,
        or the distance IoU of the ``"paper"``, with which the region lies closer to the objects."""

    options: Options

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Require sides that are distributions over the same bins, and more than one class."""
        if not (student.dense and teacher.dense):  # the other terms are refused because of `reads`
            return {"feature": neither_dense(student, teacher)}
        if not (box_code(student).distributed and box_code(teacher).distributed):
            codes = f"the student {student.name} has {student.box_code}, the teacher {teacher.name} {teacher.box_code}"
            fault = [f"both must predict the sides of a box as distributions: {codes}"]
            return dict.fromkeys(cls.all_terms(), fault)
        bins = differences(student, teacher, lambda spec: f"sides of {spec.box_size // 4} bins")
        single = [f"a softmax over the one class of {student.name} and {teacher.name} is constant"]
        widths = differences(student, teacher, lambda spec: f"the channels {spec.channels}")
        return {"location": bins, "vlr": bins, "class": single if student.num_classes == 1 else [], "feature": widths}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``ld_location`` and ``ld_vlr``, sums over anchors; ``ld_class`` and ``ld_feature``, sums of means."""
        found = positives(truth, student)
        own = at_least_float32(found.of(student.class_logits))
        counts = own.new_tensor(found.per_level)  # of each level
        images, divisor = self.options.images_per_process, counts.new_ones(())
        if self.options.normaliser == "positives":
            divisor = averaged_over_processes(counts.sum())
        elif images:
            divisor = averaged_over_processes(truth.labelled.sum()) / images
        terms = {}
        if "location" in self.terms:
            trust = own.detach().amax(-1).sigmoid()
            terms["ld_location"] = (trust * self._sides(student, teacher, found)).sum() / divisor
        if "vlr" in self.terms:
            boxes, counted = torch.cat([target["boxes"] for target in truth.targets]), truth.gt_index > -2
            weight = valuable_region(flat_anchors(student), boxes, found.image, counted, self.options.nearness)
            region = chosen(weight > 0, student)
            sides = self._sides(student, teacher, region)
            terms["ld_vlr"] = (region.of_flat(weight, student) * sides).sum() / 4 / divisor
        if "class" in self.terms:
            theirs, temperature = found.of(teacher.class_logits), self.options.class_temperature
            levels = (softened_divergence(own, theirs, temperature) / own.shape[-1]).split(found.per_level)
            terms["ld_class"] = (torch.stack([level.sum() for level in levels]) / averaged_over_processes(counts)).sum()
        if "feature" in self.terms:
            masks = imitated_cells(student.anchors, truth.targets)
            used = averaged_over_processes(counts, least=0) > 0
            levels = zip(student.features, teacher.features, masks, used, strict=True)
            # A mean over channels too, and not halved. A level without positives does not count, as in the code.
            losses = [2 / own.shape[1] * imitation_loss(own, *others) * used for own, *others, used in levels]
            terms["ld_feature"] = torch.stack(losses).sum()
        return terms

    def _sides(self, student: Outputs, teacher: Outputs, places: Places) -> Tensor:
        return side_divergence(places.of(student.box_raw), places.of(teacher.box_raw), self.options.temperature)
