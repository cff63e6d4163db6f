"""GFL: Generalized Focal Loss (Li et al., NeurIPS 2020) in torchvision's style.

::

    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}  # P3 to P7
    model = GFL(resnet_fpn_backbone(backbone_name="resnet50", weights="DEFAULT", **levels), num_classes=20)
    losses = model.train()(images, targets)
    detections = model.eval()(images)

Letters of the shapes: N images, R anchors of all levels together, R_l of one level, K classes without background, M
objects of an image, n ``reg_max``. A side is a distribution over the distances 0, 1, ..., n.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .backbones import ConvLevels, with_pyramid
from .dense import STRIDES, usual_groups
from .design import Design
from .geometry import PADDING, StrideAnchors
from .gfl_head import GFLHead
from .matching import atss, match_in_own_padding
from .postprocessing import postprocess_levels


class GFL(nn.Module):
    """GFL detector (Li et al., NeurIPS 2020), which is called as torchvision's detectors are.

    Args:
        backbone: returns an ``OrderedDict`` of levels (N, C, H, W), fine to coarse; its ``out_channels`` is C.
        num_classes: classes K, without background.
        min_size: an image is resized to this many pixels of its shorter side,
        max_size: unless its longer side would exceed this.
        image_mean: per channel, of images in 0..1; None: ImageNet's.
        image_std: likewise.
        anchor_generator: lays one square anchor per cell; None: of 8 strides, at five levels from stride 8 on.
        head: None: a :class:`GFLHead` of four convolutions per tower.
        score_thresh: the score of a detection is above this.
        nms_thresh: IoU above which the weaker of two boxes of a class is dropped.
        detections_per_img: most boxes of an image.
        topk_candidates: most boxes of a level before this suppression.
        reg_max: the largest distance from an anchor's centre to a side, in strides, of the default head.
        atss_candidates: candidates of an object per level; see :func:`.atss`.

    Raises:
        ValueError: the backbone has no ``out_channels``, or a cell has several anchors or one that is not square.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        min_size: int = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        anchor_generator: StrideAnchors | None = None,
        head: GFLHead | None = None,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.6,
        detections_per_img: int = 100,
        topk_candidates: int = 1000,
        reg_max: int = 16,
        atss_candidates: int = 9,
    ):
        super().__init__()
        channels = getattr(backbone, "out_channels", None)
        if not isinstance(channels, int):
            raise ValueError(f"backbone.out_channels: expected the channels of every level, an integer, got {channels}")
        anchor_generator = anchor_generator or StrideAnchors(STRIDES, (8.0,), (1.0,))
        if len(anchor_generator.scales) != 1 or tuple(anchor_generator.ratios) != (1.0,):
            raise ValueError(
                "anchor_generator: expected one square anchor per cell, got "
                f"scales {anchor_generator.scales} and ratios {anchor_generator.ratios}"
            )
        self.backbone = backbone
        self.anchor_generator = anchor_generator
        self.head = head or GFLHead(
            channels,
            num_classes,
            len(anchor_generator.strides),
            reg_max=reg_max,
            anchor_scale=anchor_generator.scales[0],
        )
        mean = list(image_mean or (0.485, 0.456, 0.406))
        std = list(image_std or (0.229, 0.224, 0.225))
        self.transform = GeneralizedRCNNTransform(min_size, max_size, mean, std, size_divisible=PADDING)
        self.num_classes = num_classes
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img, self.topk_candidates = detections_per_img, topk_candidates
        self.atss_candidates = atss_candidates

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training mode, the detections in evaluation mode.

        Args:
            images: each (3, H, W) RGB, float in 0..1; sizes may differ.
            targets: per image ``boxes`` (M, 4) xyxy in its pixels and ``labels`` (M,) in 0..K-1; required in training.

        Returns:
            The losses by name (see :meth:`GFLHead.compute_loss`), or per image ``boxes`` (M, 4) xyxy in its pixels,
            ``scores`` (M,) and ``labels`` (M,) in 0..K-1, best first.

        Raises:
            ValueError: in training mode, targets are missing or invalid; the message lists all faults.
        """
        if self.training and (faults := self._faults(images, targets)):
            raise ValueError("\n".join(["Invalid targets:", *(f"  - {fault}" for fault in faults)]))
        original_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        features = list(self.backbone(batch.tensors).values())
        head_outputs = self.head(features)
        anchors = self.anchor_generator(batch, features)

        counts = [feature.shape[-2] * feature.shape[-1] for feature in features]
        anchors_per_level = [list(of_image.split(counts)) for of_image in anchors]
        if self.training:
            matched = self.assign(anchors_per_level[0], targets, batch.image_sizes)
            return self.head.compute_loss(targets, head_outputs, anchors, matched)
        outputs_per_level = {name: list(output.split(counts, dim=1)) for name, output in head_outputs.items()}
        detections = self.postprocess_detections(outputs_per_level, anchors_per_level, batch.image_sizes)
        return self.transform.postprocess(detections, batch.image_sizes, original_sizes)

    def assign(
        self,
        anchors: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """Match the anchors to the objects of each image by :func:`.atss`.

        Args:
            anchors: (R_l, 4) of each level, xyxy in pixels of the padded batch.
            targets: per image ``boxes`` (M, 4) xyxy, in the same pixels.
            image_sizes: height and width of each image without padding; anchors outside an image's own padding are
                ignored (:func:`.in_own_padding`). None: no image is padded.

        Returns:
            Per image (R,) int64: number of the object, -1 background, -2 ignored.
        """
        match = partial(atss, candidates=self.atss_candidates)
        return match_in_own_padding(match, anchors, targets, image_sizes)

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: Sequence[Sequence[Tensor]],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Choose the detections of each image; see :func:`.postprocess_levels`."""
        return postprocess_levels(self, self.head.box_coder.decode, head_outputs, anchors, image_shapes)

    def _faults(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> list[str]:
        if targets is None or len(targets) != len(images):
            got = "none" if targets is None else len(targets)
            return [f"expected one target for each of the {len(images)} images, got {got}"]
        faults = []
        for number, target in enumerate(targets):
            boxes, labels = target["boxes"], target["labels"]
            if boxes.shape != (len(labels), 4) or labels.shape != (len(labels),) or labels.dtype != torch.int64:
                got = f"{tuple(boxes.shape)} and {tuple(labels.shape)} {labels.dtype}"
                faults.append(f"image {number}: expected boxes (M, 4) and labels (M,) int64, got {got}")
                continue
            if (empty := ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)).any():
                faults.append(
                    f"image {number}: expected boxes with a width and a height, got {boxes[empty][0].tolist()}"
                )
            if (unknown := (labels < 0) | (labels >= self.num_classes)).any():
                label = int(labels[unknown][0])
                faults.append(f"image {number}: expected labels from 0 to {self.num_classes - 1}, got {label}")
        return faults


def build(
    design: Design,
    *,
    style: str = "pytorch",
    extra_levels: str = "on_output",
    extra_relu: bool = False,
    stacked_convs: int = 4,
    reg_max: int = 16,
    groups: int | None = None,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.6,
    candidates: int = 1000,
    detections: int = 100,
) -> GFL:
    """Build a GFL with five levels, P3 to P7; the defaults are those of mmdet's configs.

    Args:
        design: the options of every builder.
        style: convolution of a ResNet's bottleneck that has its stride: the 3x3 (``"pytorch"``) or the first 1x1
            (``"caffe"``).
        extra_levels: map that P6 is computed from: C5 (``"on_input"``) or P5 (``"on_output"``).
        extra_relu: a ReLU before P7's convolution.
        stacked_convs: convolutions of each tower of the head.
        reg_max: the largest distance from an anchor's centre to a side, in strides.
        groups: of the head's GroupNorm; None is 32, or fewer if the channels are few. mmdet always has 32.
        score_threshold: the score of a detection is above this.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        candidates: most boxes of a level before this suppression.
        detections: most boxes of an image.
    """
    body, neck = design.body(style), design.neck_channels
    coarse = ConvLevels(body.channels[-1], neck, extra_levels, extra_relu)
    anchors = StrideAnchors(STRIDES, (design.anchor_scale or 8.0,), (1.0,))
    head = GFLHead(
        neck,
        design.num_classes,
        len(anchors.strides),
        reg_max=reg_max,
        anchor_scale=anchors.scales[0],
        stacked_convs=stacked_convs,
        groups=groups or usual_groups(neck),
    )
    return GFL(
        with_pyramid(body, neck, 3, coarse),
        design.num_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        detections_per_img=detections,
        topk_candidates=candidates,
        **design.transform,
    )


BUILDERS = {"torchvision": build, "mmdet": build}  # torchvision has no GFL
"""The function that builds the network, by conventions; its keyword arguments are the family's settings."""
