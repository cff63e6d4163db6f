"""PFI: prediction-guided feature imitation (Li et al., AAAI 2022)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from understudy.functional import Standardise, in_deviations, prediction_guided_loss
from understudy.methods.adapters import channel_adapters
from understudy.methods.base import Layers, Method
from understudy.outputs import Outputs, Spec, Truth


class PFI(Method):
    r"""The student imitates the teacher's features, weighted by the difference of the predictions in each cell.

    In every cell :math:`P` is the squared difference of the class logits :math:`z` and :math:`D` the squared difference
    of the features :math:`F`. Their product is averaged over images, cells and levels. A 1x1 convolution per level,
    :math:`\phi_l`, maps the student's channels to the teacher's if they differ.

    .. math::
        P_l = \frac{1}{A K} \sum_{a, k} \left(z^S_l - z^T_l\right)^2 \qquad
        D_l = \frac{1}{C} \sum_c \left(\phi_l(F^S_l) - F^T_l\right)^2

    .. math::
        L_\text{feature} = \frac{1}{L} \sum_l \frac{1}{N H_l W_l} \sum_{n, h, w} \left(P_l D_l\right)^\gamma

    :math:`\gamma` is ``power``, 1 by default.

    Evidence:
        paper: Knowledge Distillation for Object Detection via Rank Mimicking and Prediction-guided Feature Imitation
            (arXiv 2112.04840). Its full text and its equation were not available to us, and there is no authors' code.
            We follow second-hand sources: two other projects' implementations and summaries.
        unverified: The formula. mmrazor's drafts take logits and average the product, as the default does, or take its
            2-norm for each image (``normaliser=norm``). sparseml takes sigmoids (``score=sigmoid``) and averages. A
            fork of PaddleDetection takes class scores and the norm over all levels together. Another implementation and
            two descriptions square the product (``power=2``). None of the implementations stops the gradient through
            the difference of the predictions, and none starts late or with a ramp. The options change the value by
            three orders of magnitude.
        ours: ``detach`` and ``standardise``. ``ramp_steps`` lets the term start from zero.
        weight: 1.5 is that of mmrazor's configs (logits), for RetinaNets with ResNets on COCO, and the default of
            sparseml (sigmoids). It belongs to ``power=1``. No weight is known for ``power=2`` or for other families, so
            it must be given. Choose it so that the term is 10 to 30 % of the detection loss (our advice).
        caution: The value grows with the square of either difference, with ``power=2`` with the fourth power, so it
            varies between detectors. Check the raw value before choosing a weight. Logits differ most where both scores
            are near zero: between two narrow RetinaNets on small photos, four fifths of the term lay in cells without a
            detection of the teacher, and it made up 97 % of the gradient (``docs/results.md``). With ``score=sigmoid``,
            nine tenths lay in cells with a detection, and the share was 15 %.
    """

    name = "pfi"
    terms = ("feature",)
    weights = {"retinanet": {"feature": 1.5}}
    source = (
        "Li et al., AAAI 2022 (PFI), from second-hand sources; the weight is that of two other implementations for "
        "RetinaNet"
    )
    checked = (
        "other implementations, drafts in open-mmlab/mmrazor @4a47267d and @d5c36191: run, values to 1e-10; "
        "neuralmagic/sparseml @1c04a01: read; the paper's text was not available"
    )
    reads = {"feature": ("features", "class_logits")}

    class Options(Method.Options):
        """The options of PFI."""

        score: Literal["logit", "sigmoid"] = "logit"
        """Form of the predictions: ``"logit"`` (mmrazor's drafts) or ``"sigmoid"`` (sparseml), which makes the term
        much smaller and nearly limits it to cells in which one of the two detectors has a detection."""
        power: Literal[1, 2] = 1
        """Exponent of the product of the two differences. 2 has no default weight: its values differ by orders of
        magnitude."""
        normaliser: Literal["mean", "norm"] = "mean"
        """The ``"mean"`` over images and cells, or their 2-``"norm"`` divided by their number, which shrinks as the
        batch grows. Two draft implementations take the norm, with power 1 and image by image."""
        detach: bool = False
        """Whether to stop the gradient through the difference of the predictions, which then only weights the cells.
        In no source (ours)."""
        standardise: Standardise | None = None
        """Divide features by the teacher's deviation of each ``"level"`` or ``"channel"`` in the batch (ours). Without
        it, large features enlarge the gradient through the difference of the predictions, too."""
        adapter: Literal["auto", "always"] = "auto"
        """A 1x1 convolution on the student's features: ``"auto"`` only if channels differ (our choice), ``"always"`` on
        every level (two draft implementations)."""

    options: Options

    def __init__(self, student: Spec, teacher: Spec, **options: Any):
        super().__init__(student, teacher, **options)
        always = self.options.adapter == "always"
        self.adapters = channel_adapters(student.channels, teacher.channels, always=always)

    @classmethod
    def default_weights(cls, student: Spec, options: Any = None) -> Mapping[str, float]:
        """Return the default weight, which belongs to the product itself: none for its square."""
        return {} if options is not None and options.power == 2 else super().default_weights(student, options)

    def forward(
        self, student: Outputs, teacher: Outputs, truth: Truth, layers: Layers | None = None
    ) -> dict[str, Tensor]:
        """Compute ``pfi_feature``, averaged over levels."""
        options = self.options.model_dump(exclude={"adapter", "standardise"})
        adapted = [adapter(level) for adapter, level in zip(self.adapters, student.features, strict=True)]
        features = in_deviations(adapted, teacher.features, self.options.standardise)
        levels = zip(*features, student.class_logits, teacher.class_logits, strict=True)
        return {"pfi_feature": torch.stack([prediction_guided_loss(*level, **options) for level in levels]).mean()}
