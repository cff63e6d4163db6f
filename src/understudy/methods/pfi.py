"""PFI: the student imitates features where its predictions differ from the teacher's (Li et al., AAAI 2022)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from understudy.functional import prediction_guided_loss
from understudy.methods.base import Method, prediction_differences
from understudy.outputs import Outputs, Spec, Truth


class PFI(Method):
    """The student imitates the teacher's features most where the predictions made from them are farthest apart.

    In every cell the squared difference of the predictions (mean over anchors and classes) times the squared
    difference of the features (mean over channels); the square of this product, averaged over images and cells, then
    over levels. The paper's own equation was not at hand. The squared product is what two descriptions of it agree
    on; the other ways are options, which change the size of the loss by orders of magnitude.

    Its size goes with the fourth power of either difference, so it varies between detectors more than any other loss:
    below 0.1 where the squared differences are of order 0.5, 20000 in a small FCOS that we trained, whose finest
    features are of order 7. Look at the raw value and choose the weight so that the term is 10 to 30 % of the
    detection loss (ours). 1.5 stands in other implementations for RetinaNets with ResNets on COCO, which reduce in
    other ways; for an FCOS or a GFL no weight is known, so it has to be given.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        score: predictions are a ``"logit"`` or its ``"sigmoid"``; under the weight of 1.5, sigmoids make the term too
            small to matter.
        power: of the product of the two differences, 1 or 2.
        normaliser: ``"mean"`` over images and cells, or their ``"norm"``, divided by their number (after two
            drafts, which have power 1 and take it image by image); the latter shrinks as the batch grows.
        detach: let no gradient flow through the difference of the predictions, which then only says where to imitate;
            no source does so.
        adapter: a 1x1 convolution before the student's features: ``"auto"``, only where channels differ (ours), or
            ``"always"`` (two drafts).

    Raises:
        UserError: an option is wrong, or levels, anchors or classes of the two detectors differ.
    """

    name = "pfi"
    terms = ("feature",)
    weights = {"retinanet": {"feature": 1.5}}  # noqa: RUF012
    reads = ("features", "class_logits")
    source = (
        "Li et al., AAAI 2022 (PFI), from second-hand sources; the weight is that of two other implementations for "
        "RetinaNet"
    )

    def __init__(
        self,
        student: Spec,
        teacher: Spec,
        *,
        score: Literal["logit", "sigmoid"] = "logit",
        power: Literal[1, 2] = 2,
        normaliser: Literal["mean", "norm"] = "mean",
        detach: bool = False,
        adapter: Literal["auto", "always"] = "auto",
    ):
        super().__init__(student, teacher)
        self.options: dict[str, Any] = {"score": score, "power": power, "normaliser": normaliser, "detach": detach}
        self.adapters = nn.ModuleList(
            nn.Identity() if own == theirs and adapter == "auto" else nn.Conv2d(own, theirs, kernel_size=1)
            for own, theirs in zip(student.channels, teacher.channels, strict=True)
        )

    @classmethod
    def obstacles(cls, student: Spec, teacher: Spec, **options: Any) -> dict[str, str]:
        """Predictions are compared channel by channel, so both must have the same anchors and classes."""
        reasons = prediction_differences(student, teacher)
        return {"feature": "; ".join(reasons)} if reasons else {}

    def forward(self, student: Outputs, teacher: Outputs, truth: Truth) -> dict[str, Tensor]:
        """Compute ``pfi_feature``, averaged over levels."""
        features = [adapter(level) for adapter, level in zip(self.adapters, student.features, strict=True)]
        levels = zip(features, teacher.features, student.class_logits, teacher.class_logits, strict=True)
        return {"pfi_feature": torch.stack([prediction_guided_loss(*level, **self.options) for level in levels]).mean()}
