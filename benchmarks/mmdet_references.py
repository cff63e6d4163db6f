"""Make the references in tests/mmdet_references: run mmdet 3.3.0 on tiny copies of its own configs, on the CPU.

It needs mmdet, which understudy itself does not, so it gets an environment of its own (Python 3.11):

    uv venv mmdet_env
    uv pip install -p mmdet_env/bin/python torch==2.13.0 torchvision==0.28.0 mmengine==0.10.7 mmcv-lite==2.1.0 \
        pycocotools scipy shapely terminaltables six tqdm "numpy<2.3"
    uv pip install -p mmdet_env/bin/python --no-deps mmdet==3.3.0
    mmdet_env/bin/python benchmarks/mmdet_references.py

mmcv-lite is mmcv without its compiled operators. Two of them are used here, non-maximum suppression and RoIAlign, and
torchvision's take their place. All else is mmdet: its models, targets, losses and boxes.

For each family the weights are drawn at random from a fixed seed. Everything that a fresh detector leaves at 0 or 1
(statistics, scales, biases) is drawn too, so that nothing can be left out unnoticed.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

OUTPUT = Path(__file__).parents[1] / "tests" / "mmdet_references"
CLASSES = ("bolt", "nut", "washer")
PALETTE = [(220, 20, 60), (119, 11, 32), (0, 0, 142)]
LOSSES = {"losses": (3, 1), "losses_where_image_1_is_empty": (3, 0)}
"""For each set of losses, how many of each image's objects there are."""

LOSS_SEED = 0
"""Before the losses: Faster R-CNN's samplers draw at random."""


@dataclass(frozen=True)
class Reference:
    """What is made for one family.

    Attributes:
        config: of mmdet, below its folder of configs.
        seed: of the weights and the images.
        sizes: height and width of the two images. The second is smaller, so that it is padded in the batch.
        boxes: of the objects in each image, xyxy.
        labels: likewise.
        predictors: for the last layers by the end of their names, the standard deviation and the mean of their outputs,
            so that scores and boxes differ.
        depth: of the ResNet; None is the config's.
        coarsened: arrays of which every fourth row and column is kept.
    """

    config: str
    seed: int
    sizes: Sequence[tuple[int, int]]
    boxes: Sequence[Sequence[Sequence[float]]]
    labels: Sequence[Sequence[int]]
    predictors: dict[str, tuple[float, float]]
    depth: int | None = None
    coarsened: Sequence[str] = ()


_LABELS = ((2, 1, 0), (1,))
_SMALL: dict[str, Any] = {
    "sizes": ((64, 96), (53, 60)),
    "boxes": (((2, 2, 94, 62), (10, 8, 44, 50), (60, 30, 88, 56)), ((6, 5, 52, 47),)),
    "labels": _LABELS,
}
_MEDIUM: dict[str, Any] = {
    "sizes": ((96, 128), (60, 90)),
    "boxes": (((3, 5, 120, 90), (10, 12, 60, 70), (80, 40, 110, 66)), ((8, 7, 81, 55),)),
    "labels": _LABELS,
}
_LARGE: dict[str, Any] = {
    "sizes": ((96, 160), (90, 120)),
    "boxes": (((2, 2, 158, 94), (20, 12, 60, 70), (110, 50, 134, 78)), ((8, 7, 101, 75),)),
    "labels": _LABELS,
}
REFERENCES = {
    "retinanet": Reference(
        "retinanet/retinanet_r18_fpn_1x_coco.py",
        seed=10,
        predictors={"retina_cls": (1.5, -3.0), "retina_reg": (0.5, 0.0)},
        **_SMALL,
    ),
    "fcos": Reference(  # a Caffe-style ResNet, whose images are blue, green, red and not scaled
        "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
        seed=5,
        predictors={"conv_cls": (1.5, -3.0), "conv_reg": (0.5, 2.8), "conv_centerness": (1.5, 0.0)},
        **_MEDIUM,
    ),
    "gfl": Reference(
        "gfl/gfl_r50_fpn_1x_coco.py",
        seed=8,
        predictors={"gfl_cls": (1.5, -3.0), "gfl_reg": (2.0, 0.0)},
        coarsened=("box0",),
        **_MEDIUM,
    ),
    "faster_rcnn": Reference(  # large enough that its second stage pools from two levels
        "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        seed=324,
        predictors={"rpn_cls": (1.5, 0.0), "rpn_reg": (0.5, 0.0), "fc_cls": (1.5, 0.0), "fc_reg": (1.0, 0.0)},
        depth=18,
        coarsened=("backbone0", "neck0", "cls0", "box0"),
        **_LARGE,
    ),
}
BASE_CHANNELS, NECK_CHANNELS, GROUPS, FC_CHANNELS = 2, 8, 4, 16
"""Of the ResNet, the neck and the heads; 64, 256, 32 and 1024 in their full size."""

DETECTIONS, PROPOSALS = 30, 600
"""At most in an image; mmdet's configs have 100 and 1000. Of the proposals, training draws 512."""

NOISE = 1e-6
"""Relative, of the weights: no detection and no loss may depend on it. Rounding of float32 is about a tenth of it."""


# --- mmcv's operators -------------------------------------------------------------------------------------------------

_MODULES = ["carafe", "deform_conv", "merge_cells", "modulated_deform_conv", "multi_scale_deform_attn"]
_MODULES += ["nms", "roi_align"]


class _Operators(ModuleType):
    """Stands for ``mmcv.ops`` and the modules below it; operators that are not used here are empty classes."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})

    @staticmethod
    def batched_nms(
        boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict[str, Any], class_agnostic: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Suppress within each group; return boxes with their scores as a fifth column, and their numbers."""
        groups = torch.zeros_like(idxs) if class_agnostic else idxs
        keep = torchvision.ops.batched_nms(boxes, scores, groups, nms_cfg["iou_threshold"])
        if nms_cfg.get("max_num", -1) > 0:
            keep = keep[: nms_cfg["max_num"]]
        return torch.cat([boxes[keep], scores[keep, None]], dim=1), keep

    class RoIAlign(nn.Module):
        """Pool regions as mmcv does by default: aligned to half pixels, as many samples as a bin has pixels."""

        def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int = 0, aligned: bool = True):
            super().__init__()
            self.output_size = (output_size, output_size)
            self.options = {"spatial_scale": spatial_scale, "aligned": aligned}
            self.options["sampling_ratio"] = sampling_ratio or -1

        def forward(self, features: Tensor, regions: Tensor) -> Tensor:
            """Pool from (N, C, H, W) the regions (R, 5), whose first column is the image's number."""
            return torchvision.ops.roi_align(features, regions, self.output_size, **self.options)


def install_operators() -> None:
    """Let mmdet, which is not imported yet, find the operators above where it looks for mmcv's."""
    operators = _Operators("mmcv.ops")
    sys.modules["mmcv.ops"] = operators
    for name in _MODULES:
        sys.modules[f"mmcv.ops.{name}"] = _Operators(f"mmcv.ops.{name}")
    import mmcv

    mmcv.ops = operators


# --- the detector -----------------------------------------------------------------------------------------------------


def shrunken(reference: Reference) -> Any:
    """Read mmdet's config and make its detector tiny; the rest of the config stays as it is."""
    import mmdet
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / reference.config)
    model = config.model
    model.backbone.init_cfg = None
    model.backbone.base_channels = BASE_CHANNELS
    model.backbone.depth = reference.depth or model.backbone.depth
    expansion = 4 if model.backbone.depth >= 50 else 1
    model.neck.in_channels = [BASE_CHANNELS * expansion * 2**stage for stage in range(4)]
    model.neck.out_channels = NECK_CHANNELS
    head = model.roi_head.bbox_head if "roi_head" in model else model.bbox_head
    head.num_classes, head.in_channels = len(CLASSES), NECK_CHANNELS
    if "roi_head" in model:
        head.fc_out_channels = FC_CHANNELS
        model.roi_head.bbox_roi_extractor.out_channels = NECK_CHANNELS
        model.rpn_head.in_channels = model.rpn_head.feat_channels = NECK_CHANNELS
    else:
        head.feat_channels = NECK_CHANNELS
    if head.type in ("FCOSHead", "GFLHead"):  # whose default of 32 groups wants more channels
        head.norm_cfg = {"type": "GN", "num_groups": GROUPS, "requires_grad": True}
    model.test_cfg.get("rcnn", model.test_cfg).max_per_img = DETECTIONS
    if "roi_head" in model:
        model.test_cfg.rpn.max_per_img = model.train_cfg.rpn_proposal.max_per_img = PROPOSALS
    return config


@torch.no_grad()
def randomise(model: Any, reference: Reference, images: Sequence[np.ndarray]) -> None:
    """Draw every weight; then scale them and set the statistics so that values vary as in a trained detector."""
    generator = torch.Generator().manual_seed(reference.seed)

    def draw(value: Tensor, mean: float, std: float) -> None:
        value.copy_(torch.randn(value.shape, generator=generator) * std + mean)

    def scale(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], predictor: tuple[float, float] | None) -> None:
        """Scale a layer's weights, the first time that it is called."""
        if layer in scaled:
            return
        std, mean = predictor or (1.0, None)
        found = type(layer).forward(layer, *inputs)
        dimensions = (0, 2, 3) if found.ndim == 4 else 0
        layer.weight.mul_(std / found.std(dimensions).mean())
        if mean is not None:
            found = type(layer).forward(layer, *inputs)
            layer.bias.add_(mean - found.mean(dimensions))
            layer.bias.add_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
        scaled.add(layer)

    scaled: set[nn.Module] = set()
    hooks = []
    last_norm = "bn3" if model.backbone.depth >= 50 else "bn2"
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            # Residual branches are small: otherwise a deep network of random weights amplifies rounding.
            weight = 0.2 if name.endswith(last_norm) else 1.0
            draw(module.weight, weight, 0.1 * weight)
            draw(module.bias, 0.1, 0.1)
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module.weight, 0.0, 1.0)
            if module.bias is not None:
                draw(module.bias, 0.0, 0.1)
            how = reference.predictors.get(name.rpartition(".")[2])
            hooks.append(module.register_forward_pre_hook(lambda *given, how=how: scale(*given, how)))
    for name, parameter in model.named_parameters():
        if name.endswith(".scale"):
            draw(parameter, 1.0, 0.1)

    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    prepared = model.data_preprocessor(samples(reference, images, (3, 1)), training=False)
    model.predict(prepared["inputs"], prepared["data_samples"])
    for hook in hooks:
        hook.remove()


def checkpoint(model: nn.Module, config: Any) -> dict[str, Any]:
    """Make what mmengine's runner saves at the end of an epoch, objects of mmengine and numpy included."""
    import mmengine
    from mmengine.logging import MessageHub

    hub = MessageHub("mmdet_references")
    for iteration in (1, 2):
        hub.update_scalar("train/loss", 2.0 / iteration)
        hub.update_scalar("train/lr", 0.01)
    hub.update_info_dict({"epoch": 11, "iter": 2, "max_epochs": 12, "experiment_name": "tiny"})
    hub.update_info("dataset_meta", {"classes": CLASSES, "palette": PALETTE})
    hub.update_info("best_score", np.float64(0.4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0001)
    return {
        "meta": {
            "epoch": 12,
            "iter": 2,
            "cfg": config.pretty_text,
            "seed": 0,
            "experiment_name": "tiny",
            "time": "20240105_120000",
            "mmengine_version": mmengine.__version__,
            "dataset_meta": {"classes": CLASSES, "palette": PALETTE},
        },
        "state_dict": model.state_dict(),
        "message_hub": hub.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


# --- what it computes -------------------------------------------------------------------------------------------------


def draw_images(reference: Reference) -> list[np.ndarray]:
    """Draw images of squares of four pixels, uint8 (H, W, 3), blue first as mmdet reads files."""
    rng = np.random.default_rng(reference.seed)
    images = []
    for height, width in reference.sizes:
        small = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
        images.append(small.repeat(4, axis=0).repeat(4, axis=1)[:height, :width])
    return images


def samples(reference: Reference, images: Sequence[np.ndarray], objects: Sequence[int]) -> dict[str, Any]:
    """Make what mmdet's data loader gives; ``objects`` is how many of each image's are kept."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    data: dict[str, Any] = {"inputs": [], "data_samples": []}
    for image, boxes, labels, count in zip(images, reference.boxes, reference.labels, objects, strict=True):
        shape = image.shape[:2]
        sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
        kept = torch.tensor(boxes[:count], dtype=torch.float32).reshape(-1, 4)
        sample.gt_instances = InstanceData(bboxes=kept, labels=torch.tensor(labels[:count], dtype=torch.int64))
        data["inputs"].append(torch.from_numpy(image.copy()).permute(2, 0, 1))
        data["data_samples"].append(sample)
    return data


@torch.no_grad()
def outputs(model: Any, reference: Reference, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Compute every map of the network, and the detections."""
    model.eval()
    prepared = model.data_preprocessor(samples(reference, images, (3, 1)), training=False)
    stages = model.backbone(prepared["inputs"])
    features = model.neck(stages)
    predictions = (model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head)(features)
    maps = {"neck": features, **dict(zip(("cls", "box", "extra"), predictions, strict=False))}
    made = {f"{name}{level}": value for name, levels in maps.items() for level, value in enumerate(levels)}
    made |= {f"backbone{stage}": stages[stage] for stage in range(model.neck.start_level, len(stages))}
    for name in reference.coarsened:
        made[name] = made[name][..., ::4, ::4]
    for number, found in enumerate(model.predict(prepared["inputs"], prepared["data_samples"], rescale=False)):
        boxes = found.pred_instances
        made |= {f"det{number}_boxes": boxes.bboxes, f"det{number}_scores": boxes.scores}
        made[f"det{number}_labels"] = boxes.labels
    return {name: value.contiguous().numpy() for name, value in made.items()}


@torch.no_grad()
def losses(model: Any, reference: Reference, images: Sequence[np.ndarray], objects: Sequence[int]) -> dict[str, float]:
    """Compute the losses in training mode, in which the backbone's statistics stay fixed; summed over levels."""
    model.train()
    prepared = model.data_preprocessor(samples(reference, images, objects), training=True)
    torch.manual_seed(LOSS_SEED)
    found = model.loss(prepared["inputs"], prepared["data_samples"])
    return {
        name: float(sum(value) if isinstance(value, list) else value) for name, value in found.items() if name != "acc"
    }


@torch.no_grad()
def check_steady(model: Any, reference: Reference, images: Sequence[np.ndarray], trials: int = 40) -> None:
    """Check that rounding, which differs between processors, changes no label of a detection and no drawn sample.

    Raises:
        ValueError: weights with a little noise give other detections or losses; another seed is needed.
    """

    def computed(model: Any) -> tuple[list[int], list[float]]:
        arrays = outputs(model, reference, images)
        labels = [label for number in range(2) for label in (-1, *arrays[f"det{number}_labels"].tolist())]
        return labels, [value for case in LOSSES.values() for value in losses(model, reference, images, case).values()]

    labels, values = computed(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(trials):
        noisy = copy.deepcopy(model)
        for parameter in noisy.parameters():
            parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=generator))
        found_labels, found_values = computed(noisy)
        if found_labels != labels or not np.allclose(found_values, values, rtol=1e-3, atol=0):
            raise ValueError(f"seed {reference.seed}: small differences of the weights change detections or losses")


def make(family: str, folder: Path) -> None:
    """Write one family's reference and print what tells whether it is a good one."""
    import mmdet
    from mmdet.registry import MODELS

    reference = REFERENCES[family]
    config = shrunken(reference)
    model = MODELS.build(config.model)
    images = draw_images(reference)
    randomise(model, reference, images)
    arrays = outputs(model, reference, images)
    check_steady(model, reference, images)
    arrays |= {f"image{number}": image for number, image in enumerate(images)}
    for number, (boxes, labels) in enumerate(zip(reference.boxes, reference.labels, strict=True)):
        arrays[f"gt{number}_boxes"] = np.array(boxes, dtype=np.float32)
        arrays[f"gt{number}_labels"] = np.array(labels, dtype=np.int64)
    meta = {
        "mmdet": mmdet.__version__,
        "torch": torch.__version__.partition("+")[0],
        "config": reference.config,
        "classes": CLASSES,
        "image_sizes": reference.sizes,
        "coarsened": reference.coarsened,
        **{name: losses(model, reference, images, objects) for name, objects in LOSSES.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "outputs.npz", **arrays)
    torch.save(checkpoint(model, config), folder / "checkpoint.pth")
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")

    print(f"{family}: {', '.join(f'{file.name} {file.stat().st_size / 1024:.0f} KB' for file in folder.iterdir())}")
    for name in LOSSES:
        print(f"  {name}:", {loss: round(value, 4) for loss, value in meta[name].items()})
    for number in range(2):
        scores = arrays[f"det{number}_scores"]
        counts = np.bincount(arrays[f"det{number}_labels"], minlength=len(CLASSES))
        gap = np.diff(scores).max() if len(scores) > 1 else None
        print(f"  image {number}: detections {counts}, scores {scores.max():.3f} to {scores.min():.3f}, gap {gap:.1e}")
    print("  deviations:", {name: round(float(value.std()), 2) for name, value in arrays.items() if value.ndim == 4})


def main() -> None:
    """Make the references of all families, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(REFERENCES)}; default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    install_operators()
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    for family in options.families or REFERENCES:
        make(family, options.output / family)


if __name__ == "__main__":
    main()
