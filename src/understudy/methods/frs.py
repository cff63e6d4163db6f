"""FRS: distilling object detectors with feature richness (Du et al., NeurIPS 2021)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from understudy.boxes import decode
from understudy.functional import Standardise, in_deviations, richness
from understudy.methods.base import Layers, Method
from understudy.methods.compatibility import unreadable
from understudy.outputs import Outputs, Spec, Truth


class FRS(Method):
    r"""The student imitates the teacher in cells where the teacher's class scores are high, labelled or not.

    The feature richness :math:`S_l` of a cell is the teacher's highest class score there. Weighted by it, the student's
    features imitate the teacher's (``feature``), after a 3x3 convolution per level, :math:`\phi_l`, which is discarded
    after training. The class scores imitate the teacher's in the same way (``class``), and so do the raw box outputs if
    ``box`` has a weight.

    .. math::
        L_\text{feature} = \sum_l \frac{1}{N_l} \sum_{n, h, w} S_l \sum_c \left(\phi_l(F^S_l) - F^T_l\right)^2

    .. math::
        L_\text{class} = \sum_l \frac{1}{N_l} \sum_{n, h, w} S_l
        \sum_{a, k} \operatorname{BCE}\left(\sigma(z^S_l), \sigma(z^T_l)\right)

    .. math::
        L_\text{box} = \sum_l \frac{1}{N_l} \sum_{n, h, w} S_l \sum_{a, d} \left(b^S_l - b^T_l\right)^2

    .. math::
        S_l = \max_{a, k} \sigma(z^T_l) \qquad N_l = \sum_{n, h, w} S_l

    :math:`z` are class logits, :math:`b` raw box outputs, and
    :math:`\operatorname{BCE}(p, q) = -q \log p - (1 - q) \log(1 - p)`. The minimum of ``class`` is the teacher's own
    entropy, not 0. A Faster R-CNN has the scores and boxes of its first stage.

    With ``normaliser=pyramid``, one divisor replaces all :math:`N_l`. With ``standardise``, the teacher's deviation
    :math:`d_{l c}` of a level or channel divides the features. With ``boxes=decoded``, ``box`` compares the boxes
    themselves, those of a cell in proportion to the teacher's highest score of each anchor.

    .. math::
        N = \sum_l N_l \qquad
        \sum_c \left(\frac{\phi_l(F^S_l) - F^T_l}{d_{l c}}\right)^2 \qquad
        \sum_a \frac{\max_k \sigma(z^T_l)}{\sum_{a'} \max_k \sigma(z^T_l)}
        \left(1 - \operatorname{GIoU}(b^S_l, b^T_l)\right)

    With ``class_balance``, :math:`S_l` is multiplied by a factor for the class :math:`k` with the highest score in the
    cell, which follows from the part :math:`p_k` of :math:`N` in the cells of this class, of :math:`K` classes.

    .. math::
        \frac{1 / K + 0.05}{p_k + 0.05}

    Classes whose part is far below 0.05 have nearly the same factor, so many classes are balanced less than few: of 3
    classes, parts of 93 % and 2 % (46:1) become 3.3:1, but of 80 classes, parts of 20 % and 0.25 % (80:1) become
    16.8:1.

    Evidence:
        paper: Distilling Object Detectors with Feature Richness, Eq. 5 to 8. It states neither weights nor ramp nor
            adapter.
        code: If the authors' code differs from the paper, this implementation follows the code. The maximum runs over
            anchors, too. The divisor is the sum of the mask over the whole batch (``normaliser=image`` is Eq. 6 read
            literally). With several processes it is their mean, where the authors divide by that of each. The adapter
            exists although the channels agree. The weights grow linearly over 500 steps. A two-stage detector is
            distilled in its first stage alone. ``box`` and ``centerness`` are from the authors' development code, as
            are the definitions of the regions, which the paper's Table 4 names.
        ours: ``scores=cell``, for pairs with different anchors. ``normaliser=pyramid``, ``standardise``,
            ``boxes=decoded`` and ``class_balance``, for narrow pyramids, small images and rare classes. With a divisor
            per level all levels have the same influence, even one whose scores are all near zero. The published
            weights were not made for these options: with one divisor a term is as large as one level's, standardised
            as if features had a deviation of 1.
        weight: From the authors' configurations for RetinaNet, FCOS, GFL and Faster R-CNN. ``box`` has 0.2 for
            RetinaNet and 0.002 for GFL in their development code, and is off here by default.
        caution: A user of the authors' code could not reproduce the paper's results for FCOS; the report was never
            answered. Scores of a few percent add up over many background cells; ``threshold`` excludes them.
    """

    name = "frs"
    terms = ("feature", "class")
    optional_terms = ("box",)
    weights = {
        "retinanet": {"feature": 0.005, "class": 0.02},
        "fcos": {"feature": 0.01, "class": 0.05},
        "gfl": {"feature": 0.1, "class": 0.05},
        "faster_rcnn": {"feature": 0.002, "class": 0.1},
    }
    ramp_steps = 500
    source = "Du et al., NeurIPS 2021, Eq. 4-8; weights and ramp from the authors' configurations"
    checked = "authors' code, duzhixing/FRS @decd60c: run, to 1e-10; options: duzhixing/mmdetection @839517c, read"
    reads = {
        "feature": ("features", "teacher_scores"),
        "class": ("class_logits",),
        "box": ("box_raw", "teacher_scores"),
    }

    class Options(Method.Options):
        """The options of FRS."""

        normaliser: Literal["batch", "image", "pyramid"] = "batch"
        """Divide each level by its mask in the ``"batch"`` (the authors' code) or in each ``"image"`` (Eq. 6 read
        literally), or all by the mask of the ``"pyramid"``, where levels count by their mask (ours)."""
        standardise: Standardise | None = None
        """Divide features by the teacher's deviation of each ``"level"`` or ``"channel"`` in the batch (ours)."""
        threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
        """Cells above this score have weight 1, others 0. None: richness; for ``region``, 0.1 (authors' ablation)."""
        scores: Literal["anchor", "cell"] = "anchor"
        """Compare scores per ``"anchor"``, or, for any anchors, the highest of each class in a ``"cell"`` (ours)."""
        boxes: Literal["raw", "decoded"] = "raw"
        """Compare ``"raw"`` box outputs (authors' development code), or ``"decoded"`` boxes by their GIoU (ours)."""
        centerness: bool = False
        """Multiply the scores by the teacher's centre-ness, which an FCOS has (the authors' development code)."""
        region: richness.Region = "richness"
        """Weight all cells by ``"richness"``, or give weight 1 to those of the paper's Table 4: ``"tp_fp"`` above the
        threshold, ``"tp_fn"`` with an anchor assigned to an object, ``"tp"`` both, ``"tp_tn"`` both or neither."""
        class_balance: bool = False
        """Give the classes that the teacher sees about the same influence, with many classes less so (ours)."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        levels = zip(student.channels, teacher.channels, strict=True) if "feature" in self.terms else ()
        self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, kernel_size=3, padding=1) for own, theirs in levels)

    @classmethod
    def reads_with(cls, options: Options) -> Mapping[str, tuple[str, ...]]:
        """Return the inputs of each term; cells, boxes, centre-ness and the ground truth depend on the options."""
        more = ("teacher_centerness",) if options.centerness else ()
        more += () if options.region in richness.WITHOUT_TRUTH else ("assignment",)
        cells = {"class": ("cell_scores",)} if options.scores == "cell" else {}
        boxes = {"box": ("boxes", "teacher_scores")} if options.boxes == "decoded" else {}
        return {term: (*reads, *more) for term, reads in {**cls.reads, **cells, **boxes}.items()}

    @classmethod
    def misfits(cls, student: Spec, teacher: Spec, options: Options) -> Mapping[str, Sequence[str]]:
        """Name the option that helps if the teacher has no centre-ness, or only anchors or raw boxes differ."""
        central = ["set methods.frs.centerness=false"] if options.centerness and not teacher.centerness else []
        inputs = "class_logits", "cell_scores", "box_raw", "boxes"
        anchor, cell, raw, box = (unreadable([read], student, teacher) for read in inputs)
        alike, same = options.scores == "anchor" and anchor and not cell, options.boxes == "raw" and raw and not box
        per_cell = ["set methods.frs.scores=cell to compare cells"] if alike else []
        decoded = ["set methods.frs.boxes=decoded to compare boxes of any code"] if same else []
        return {"feature": central, "class": central + per_cell, "box": central + decoded}

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``frs_feature``, ``frs_class`` and, if it has a weight, ``frs_box``, each summed over levels."""
        options = self.options
        masks = richness.richness_masks(student, teacher, truth, options.centerness, options.region, options.threshold)
        masks = richness.balanced_over_classes(masks, teacher.class_logits) if options.class_balance else masks
        divisor = richness.total_mass(masks) if options.normaliser == "pyramid" else options.normaliser
        terms = {}
        for term in self.terms:
            loss, *sides = self._compared(term, student, teacher)
            terms[f"frs_{term}"] = torch.stack([loss(*each, divisor) for each in zip(*sides, masks, strict=True)]).sum()
        return terms

    def _compared(self, term: str, student: Outputs, teacher: Outputs) -> tuple[Any, ...]:
        if term == "feature":
            adapted = map(nn.Module.__call__, self.adapters, student.features)
            return richness.weighted_feature_loss, *in_deviations(adapted, teacher.features, self.options.standardise)
        if term == "class":
            cell = richness.highest_of_cell if self.options.scores == "cell" else nn.Identity()
            return richness.weighted_class_loss, map(cell, student.class_logits), map(cell, teacher.class_logits)
        if self.options.boxes == "raw":
            return richness.weighted_box_loss, student.box_raw, teacher.box_raw
        boxes = decode(student, self.student), decode(teacher, self.teacher)
        return richness.weighted_giou_loss, *boxes, teacher.class_logits
