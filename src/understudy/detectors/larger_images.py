"""A teacher that sees larger images than its student: its record, in the pixels of the student's batch."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from understudy.boxes import box_code
from understudy.detectors.base import Detector
from understudy.errors import UserError
from understudy.outputs import Needs, Outputs, QueryOutputs, Spec, Target, TowerMaps

Sizes = Sequence[tuple[int, int]]


def with_larger_images(detector: Detector, scale: int) -> Detector:
    """Let a teacher see images that are several times as large as its student's.

    Cells of the teacher then cover fewer pixels of the student's images: with a scale of 2 its level of stride 16 is
    compared with the student's of stride 8. What it says on finer levels counts there, too (:func:`.folded`). Build
    methods from its Spec, and give it the larger images::

        teacher = with_larger_images(teacher, 2)
        common = pair(student.spec, teacher.spec)
        methods, weights = build_methods({"frs": {}}, common.student, common.teacher)
        learner = Learner(student, methods, common)
        with torch.no_grad():
            teacher_outputs = teacher(larger, needs=learner.needs)  # (N, 3, 2 H, 2 W)
        losses = learner(images, targets, teacher_outputs)  # (N, 3, H, W)

    Args:
        detector: any; it is not changed.
        scale: a power of two; 1: the detector itself is returned.

    Raises:
        UserError: the scale is no power of two, or larger than the detector's finest stride.

    Examples:
        >>> from understudy import build_detector
        >>> teacher = with_larger_images(build_detector("retinanet_resnet18", num_classes=3), 2)
        >>> teacher.spec.strides
        (4, 8, 16, 32, 64)
    """
    if scale < 1 or scale & (scale - 1):
        raise UserError(f"The scale of a teacher's images is a power of two, got {scale}.")
    finest = min((*detector.spec.strides, *detector.spec.stage_strides))
    if scale > finest:
        raise UserError(
            f"The scale of a teacher's images, {scale}, is above the finest stride of {detector.spec.name}, {finest}."
        )
    return detector if scale == 1 else LargerImages(detector, scale)


def nearest_scale(teacher: float, student: float) -> int:
    """Return the scale, of 1, 2 and 4, at which a teacher sees images of nearly its own size.

    Args:
        teacher: shorter side of its images in its own training.
        student: shorter side of the student's images.

    Examples:
        >>> nearest_scale(640, 320), nearest_scale(640, 480), nearest_scale(800, 160)
        (2, 1, 4)
    """
    return 2 ** min(max(round(math.log2(teacher / student)), 0), 2)


def at_own_size(detector: Detector) -> Detector:
    """Return the detector that sees its images as they are: the inverse of :func:`with_larger_images`."""
    return detector.detector if isinstance(detector, LargerImages) else detector


class LargerImages(Detector):
    """Open a detector whose images are ``scale`` times as large as the batch; all else is in pixels of the batch.

    Args:
        detector: the detector of the larger images.
        scale: a power of two, see :func:`with_larger_images`.
    """

    def __init__(self, detector: Detector, scale: int):
        nn.Module.__init__(self)
        self.detector, self.scale = detector, scale
        self.__dict__["network"] = detector.network  # not registered twice
        self.family, self.box_code = detector.family, detector.box_code
        self.assigns_by_anchors = detector.assigns_by_anchors
        self.spec = _scaled(detector.spec, scale)
        self.train(detector.training)

    def forward(
        self,
        images: Tensor,
        image_sizes: Sizes | None = None,
        targets: Sequence[Target] | None = None,
        needs: Needs | None = None,
    ) -> Outputs:
        """Compute the record of larger images (N, 3, H * scale, W * scale); their ``image_sizes`` are larger, too."""
        return self._smaller(self.detector(images, image_sizes, self._targets(targets), needs))

    def backbone(self, images: Tensor, image_sizes: Sizes | None = None) -> list[Tensor]:
        """Compute the backbone's outputs of larger images; see :meth:`.Detector.backbone`."""
        return self.detector.backbone(images, image_sizes)

    def neck(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Compute the features; see :meth:`.Detector.neck`."""
        return self.detector.neck(stages)

    def head(
        self, features: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target] | None = None
    ) -> Outputs:
        """Compute the record from features; see :meth:`.Detector.head`."""
        size = image_size[0] * self.scale, image_size[1] * self.scale
        return self._smaller(self.detector.head(features, size, self._targets(targets)))

    def assign(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Match predictions to objects; see :meth:`.Detector.assign`."""
        return self.detector.assign(self._larger(outputs), self._targets(targets))

    def loss(self, outputs: Outputs, targets: Sequence[Target], gt_index: Tensor) -> dict[str, Tensor]:
        """Compute the detector's own losses; see :meth:`.Detector.loss`."""
        return self.detector.loss(self._larger(outputs), self._targets(targets), gt_index)

    def detect(self, outputs: Outputs, image_sizes: Sizes) -> list[dict[str, Tensor]]:
        """Compute the final detections; see :meth:`.Detector.detect`."""
        found = self.detector.detect(self._larger(outputs), self._sizes(image_sizes))
        return [{**each, "boxes": each["boxes"] / self.scale} for each in found]

    def proposals(self, outputs: Outputs, image_sizes: Sizes | None = None, *, training: bool = False) -> list[Tensor]:
        """Choose the boxes that the second stage classifies; see :meth:`.Detector.proposals`."""
        sizes = None if image_sizes is None else self._sizes(image_sizes)
        found = self.detector.proposals(self._larger(outputs), sizes, training=training)
        return [boxes / self.scale for boxes in found]

    def score_boxes(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Classify and correct boxes with the second stage; see :meth:`.Detector.score_boxes`."""
        logits, corrected = self.detector.score_boxes(features, [each * self.scale for each in boxes])
        return logits, corrected / self.scale

    def decode(self, outputs: Outputs) -> list[Tensor]:
        """Compute the box of every anchor; see :meth:`.Detector.decode`."""
        return [level / self.scale for level in self.detector.decode(self._larger(outputs))]

    def lay_anchors(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Lay the anchors of an image; see :meth:`.Detector.lay_anchors`."""
        return [level / self.scale for level in self.detector.lay_anchors(self._sizes([image_size])[0])]

    @property
    def background_below(self) -> float | None:
        """IoU below which an anchor is background; see :attr:`.Detector.background_below`."""
        return self.detector.background_below

    @property
    def num_labels(self) -> int | None:
        """Number of labels; see :attr:`.Detector.num_labels`."""
        return self.detector.num_labels

    def label_names(self, classes: Sequence[str]) -> list[str]:
        """Name the labels of the plain network; see :meth:`.Detector.label_names`."""
        return self.detector.label_names(classes)

    def compile_layers(self) -> None:
        """Compile the layers that take most of the time; see :meth:`.Detector.compile_layers`."""
        self.detector.compile_layers()

    @contextmanager
    def keeping(self, *convolutions: int) -> Generator[None]:
        """Keep feature maps inside the head's towers; see :meth:`.Detector.keeping`."""
        with self.detector.keeping(*convolutions):
            yield

    def tower_maps(self, outputs: Outputs, convolution: int) -> TowerMaps:
        """Return the feature maps inside the head's towers; see :meth:`.Detector.tower_maps`."""
        return self.detector.tower_maps(outputs, convolution)

    def head_from(self, tower_maps: TowerMaps, convolution: int, outputs: Outputs) -> Outputs:
        """Run the end of the head on other maps; see :meth:`.Detector.head_from`."""
        return self._smaller(self.detector.head_from(tower_maps, convolution, self._larger(outputs)))

    def _smaller(self, outputs: Outputs) -> Outputs:
        """Return a record of the larger images in pixels of the batch."""
        return self._times(outputs, 1 / self.scale)

    def _larger(self, outputs: Outputs) -> Outputs:
        """Return a record in pixels of the batch in those of the larger images."""
        return self._times(outputs, self.scale)

    def _times(self, outputs: Outputs, factor: float) -> Outputs:
        in_pixels, queries, size = box_code(self.spec).in_pixels, outputs.queries, outputs.size
        return replace(
            outputs,
            box_raw=[level * factor for level in outputs.box_raw] if in_pixels else outputs.box_raw,
            anchors=[level * factor for level in outputs.anchors],
            size=size and (round(size[0] * factor), round(size[1] * factor)),
            image_sizes=outputs.image_sizes
            and tuple((round(height * factor), round(width * factor)) for height, width in outputs.image_sizes),
            queries=queries and QueryOutputs(queries.class_logits, [boxes * factor for boxes in queries.boxes]),
        )

    def _sizes(self, sizes: Sizes) -> list[tuple[int, int]]:
        return [(height * self.scale, width * self.scale) for height, width in sizes]

    def _targets(self, targets: Sequence[Target] | None) -> Any:
        return targets and [{**target, "boxes": target["boxes"] * self.scale} for target in targets]


def _scaled(spec: Spec, scale: int) -> Spec:
    """Return the facts about a detector in pixels of the smaller images."""
    anchors = (tuple(tuple(side / scale for side in anchor) for anchor in level) for level in spec.first_anchors)
    return replace(
        spec,
        strides=tuple(stride // scale for stride in spec.strides),
        stage_strides=tuple(stride // scale for stride in spec.stage_strides),
        first_anchors=tuple(anchors),
        scale=scale,
    )
