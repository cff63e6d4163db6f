"""FRS: distilling object detectors with feature richness (Du et al., NeurIPS 2021)."""

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from understudy.functional import richness
from understudy.methods.base import Method, anchor_differences, differences, level_differences
from understudy.outputs import Outputs, Spec, Truth


class FRS(Method):
    """The student imitates the teacher wherever the teacher sees something, inside the labelled boxes or not.

    A cell's weight is the teacher's highest class score there (Eq. 5). Under it the student's features, through a 3x3
    convolution per level that is thrown away after training, are drawn to the teacher's (Eq. 6), and its class scores
    to the teacher's (Eq. 7); both sums run over all levels. Where paper and authors' code differ (a maximum over
    anchors too, one normaliser per batch, a ramp of 500 steps) this follows the code. Of a Faster R-CNN the scores
    are its RPN's, as in the authors' code. The term ``box``, squared differences of the raw box outputs, is from their
    development code (weight 0.2 for RetinaNet, 0.002 for GFL) and off unless it is given a weight.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        normaliser: divide by the mask of the whole ``"batch"`` of a process (the authors' code) or of each
            ``"image"`` (Eq. 6 read literally; the same on one process or several).
        threshold: None weights cells by richness; a number in 0..1 takes the cells above it, all with weight 1. Where
            a region needs one, None is 0.1, as in the authors' ablation.
        scores: the class term compares the scores of every ``"anchor"`` (the authors' way), or for each class the
            highest of a ``"cell"``, which needs no equal anchors (ours: it is in no paper).
        centerness: richness is the score times an FCOS teacher's centre-ness (the authors' development code).
        region: all cells by ``"richness"``, or with weight 1 those of Table 4: ``"tp"`` above the threshold and with
            an anchor assigned to an object, ``"tp_fp"`` the former, ``"tp_fn"`` the latter, ``"tp_tn"`` both or none.

    Raises:
        UserError: an option is wrong, levels, anchors, classes or boxes of the two cannot be compared, or there is no
            centre-ness to count.
    """

    name, terms, optional_terms, ramp_steps = "frs", ("feature", "class"), ("box",), 500
    weights = {  # noqa: RUF012
        "retinanet": {"feature": 0.005, "class": 0.02},
        "fcos": {"feature": 0.01, "class": 0.05},
        "gfl": {"feature": 0.1, "class": 0.05},
        "faster_rcnn": {"feature": 0.002, "class": 0.1},
    }
    reads = ("features", "class_logits", "box_raw")  # with some options the centre-ness or the ground truth, too
    source = "Du et al., NeurIPS 2021, Eq. 4-8; weights and ramp from the authors' configurations"

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        normaliser: richness.Normaliser = "batch",
        threshold: Annotated[float, Field(ge=0, lt=1)] | None = None,
        scores: Literal["anchor", "cell"] = "anchor",
        centerness: bool = False,
        region: richness.Region = "richness",
    ):
        super().__init__(student, teacher, scores=scores, centerness=centerness)
        self.normaliser, self.scores, self.centerness = normaliser, scores, centerness
        self.region, self.threshold = region, threshold
        self.reads = self.reads if region in richness.WITHOUT_TRUTH else (*self.reads, "truth")
        levels = zip(student.channels, teacher.channels, strict=True) if "feature" in self.terms else ()
        self.adapters = nn.ModuleList(nn.Conv2d(own, theirs, kernel_size=3, padding=1) for own, theirs in levels)

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Levels must agree; for the class term what is scored, for the box term the code, for both the anchors."""
        levels = level_differences(student, teacher)
        if options.get("centerness") and teacher.family != "fcos":
            levels.append(f"the teacher {teacher.name} has no centre-ness; methods.frs.centerness=false needs none")
        scored = differences(student, teacher, lambda spec: spec.scored)
        anchors, places = (anchor_differences(student, teacher, raw=raw) for raw in (False, True))
        boxes = differences(student, teacher, lambda spec: f"boxes as {spec.box_size} {spec.box_code}")
        remedy = [] if levels or scored or not anchors else ["methods.frs.scores=cell compares cells instead"]
        of_scores = [] if options.get("scores") == "cell" else anchors + remedy
        faults = {"feature": levels, "class": levels + scored + of_scores, "box": levels + places + boxes}
        return {term: "; ".join(reasons) for term, reasons in faults.items() if reasons}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``frs_feature``, ``frs_class`` and, if it has a weight, ``frs_box``, each summed over levels."""
        masks = richness.richness_masks(student, teacher, truth, self.centerness, self.region, self.threshold)
        cell = richness.highest_of_cell if self.scores == "cell" else nn.Identity()
        compared = {
            "feature": (map(nn.Module.__call__, self.adapters, student.features), teacher.features),
            "class": (map(cell, student.class_logits), map(cell, teacher.class_logits)),
            "box": (student.box_raw, teacher.box_raw),
        }
        return {
            f"frs_{term}": richness.over_levels(richness.WEIGHTED[term], *compared[term], masks, self.normaliser)
            for term in self.terms
        }
