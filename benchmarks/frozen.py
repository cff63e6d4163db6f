"""Record what the package computes, to the bit, and compare two such records: a refactoring may change no number.

    python benchmarks/frozen.py record before.json
    python benchmarks/frozen.py compare before.json after.json

All of it is tiny, seeded, and on one thread of the CPU; it takes three minutes. A tensor is recorded by the SHA-256 of
its bytes, and by its sum, which shows how far apart two are. Only what the package keeps is called, so that the same
file runs before and after. Another machine, or another version of torch, may give other numbers.
"""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: what chooses a device by itself takes the CPU

import argparse
import copy
import csv
import hashlib
import importlib
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, suppress
from functools import cache, partial
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.models import get_model

import understudy

Found = Iterator[tuple[str, Any]]
"""Names, and what stands under them: a number, a text, a tensor, or a list or mapping of such."""

FAMILIES = ("retinanet", "fcos", "gfl", "faster_rcnn")
CLASSES, OTHER_CLASSES = ("cat", "dog", "bird"), ("bird", "cow", "Dog ")
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
SIZES = (64, 96), (52, 70)  # the second image is padded
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 36, 40], [40, 12, 92, 60], [50, 30, 64, 46]]), "labels": torch.tensor([2, 0, 1])},
    {"boxes": torch.tensor([[10.0, 6, 48, 44]]), "labels": torch.tensor([1])},
]


def moved(name: str, *modules: str) -> Callable[..., Any]:
    """The function of this name, from the first of the modules that there is."""
    reasons = []
    for module in modules:
        try:
            return getattr(importlib.import_module(f"understudy.{module}"), name)
        except ModuleNotFoundError as error:
            reasons.append(str(error))
    raise SystemExit(f"{name}: {'; '.join(reasons)}")


# --- detectors: records, assignments, losses, gradients, boxes and detections -----------------------------------------

SPEC = ("channels", "strides", "num_anchors", "num_classes", "box_size", "box_code", "objectness", "stage_channels")
SPEC += ("stage_strides", "tower_channels", "first_anchors", "family", "name")
MMDET_FCOS = dict.fromkeys(("norm_on_bbox", "centerness_on_reg", "center_sampling", "conv_bias"), True)
MMDET_RETINANET = {"extra_levels": "on_output", "extra_relu": True, "octaves": 2}
DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{family} of {conventions}": (f"{family}_resnet18", {"conventions": conventions})
    for conventions, family in product(("torchvision", "mmdet"), FAMILIES)
}
DESIGNS |= {
    "group norm, larger anchors": ("retinanet_resnet18", {"head_norm": "group", "anchor_scale": 5.0}),
    "settings of a retinanet": ("retinanet_resnet18", {"conventions": "mmdet", "settings": MMDET_RETINANET}),
    "settings of an fcos": ("fcos_resnet18", {"conventions": "mmdet", "settings": MMDET_FCOS | {"box_loss": "giou"}}),
    "settings of a gfl": ("gfl_resnet50", {"settings": {"reg_max": 7, "stacked_convs": 2, "style": "caffe"}}),
    "frozen": ("faster_rcnn_resnet18", {"norm": "frozen", "frozen_stages": 2}),
    "mobilenet_v2": ("fcos_mobilenet_v2", {"width_mult": 0.35}),
    "mobilenet_v3": ("gfl_mobilenet_v3_small", {"width_mult": 0.5, "norm": "eval"}),
    "regnet": ("retinanet_regnet_x_400mf", {"width_mult": 0.5}),
    "resnext": ("faster_rcnn_resnext50_32x4d", {"width_mult": 0.5}),
}


def detectors() -> Found:
    """What detectors of every family make of two images, and how large the whole ones are."""
    for label, (name, options) in DESIGNS.items():
        detector = tiny(name, seed=1, **options)
        yield f"{label}/names", " ".join(detector.state_dict())
        yield f"{label}/first weights", digest(detector.state_dict())
        yield f"{label}/spec", {field: repr(getattr(detector.spec, field)) for field in SPEC}
        opinionated(detector)
        for mode in ("eval", "train"):
            yield f"{label}/{mode}", uses(detector.train(mode == "train"))
        yield f"{label}/last weights", digest(detector.state_dict())
        with torch.no_grad():
            yield f"{label}/plain", detector.network.eval()(list(IMAGES))
    backbones = ("resnet50", "mobilenet_v2", "resnext101_32x8d")
    for family, backbone, conventions in product(FAMILIES, backbones, ("torchvision", "mmdet")):
        with torch.device("meta"):
            whole = understudy.build_detector(f"{family}_{backbone}", 80, conventions=conventions)
        sizes = [each.numel() for each in whole.parameters()]
        yield f"size/{family} {backbone} {conventions}", [len(sizes), sum(sizes)]


def uses(detector: Any) -> dict[str, Any]:
    """A detector's record of two images, with and without objects, and what follows from it."""
    outputs = detector(IMAGES, SIZES)
    found = record(outputs) | {"boxes": detector.decode(outputs), "detections": detector.detect(outputs, SIZES)}
    for label, most in (("objects", None), ("no objects", 0)):
        aims = [{name: value[:most] for name, value in each.items()} for each in TARGETS]
        found[f"{label}/assigned"] = gt_index = detector.assign(outputs, aims)
        torch.manual_seed(2)  # a Faster R-CNN draws
        losses = found[f"{label}/losses"] = detector.loss(outputs, aims, gt_index)
        detector.zero_grad()
        torch.stack(list(losses.values())).sum().backward(retain_graph=True)
        found[f"{label}/gradients"] = digest({name: each.grad for name, each in detector.named_parameters()})
    return found


def record(outputs: Any) -> dict[str, Any]:
    """The fields of a record."""
    fields = ("stages", "features", "class_logits", "box_raw", "anchors", "extra")
    return {name: getattr(outputs, name) for name in fields} | {"image_sizes": repr(outputs.image_sizes)}


def tiny(name: str, seed: int, neck: int = 24, width_mult: float = 1 / 8, **options: Any) -> Any:
    """A detector that runs in milliseconds, with its first weights."""
    options |= {"neck_channels": neck, "width_mult": width_mult, "shorter_side": 64, "longer_side": 96}
    if name.startswith("faster_rcnn"):
        options["settings"] = {"fc_channels": 16}
    torch.manual_seed(seed)
    return understudy.build_detector(name, len(CLASSES), **options)


@torch.no_grad()
def opinionated(detector: Any) -> Any:
    """Give a detector weights with which it sees something or other everywhere, scores and boxes far apart."""
    torch.manual_seed(5)
    for name, weight in detector.network.named_parameters():
        if name.startswith("head.") and weight.dim() == 4:  # the first weights are too small for so few channels
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    outputs = detector.eval()(IMAGES, SIZES)
    for name, weight in detector.network.named_parameters():
        if name.endswith("cls_logits.weight"):
            weight *= 2 / torch.cat([logits.flatten() for logits in outputs.class_logits]).std()
        if name.endswith(("bbox_reg.weight", "rpn.head.bbox_pred.weight")):
            weight *= 0.5 / torch.cat([raw.flatten() for raw in outputs.box_raw]).std()
        if name.endswith("cls_logits.bias"):
            nn.init.zeros_(weight)
        if name.endswith("bbox_reg.bias") and detector.spec.family == "fcos":  # sides of some pixels
            nn.init.constant_(weight, 1.5)
        if name.endswith("bbox_reg.bias") and detector.spec.family == "gfl":
            weight.copy_(-0.5 * torch.arange(len(weight) // 4).repeat(4))
    return detector


# --- methods: their terms in three steps ------------------------------------------------------------------------------

CROSSED = ("fcos gfl", "gfl fcos", "retinanet fcos", "faster_rcnn retinanet", "gfl faster_rcnn", "fcos-mmdet fcos")
CROSSED += ("retinanet-mmdet retinanet-mmdet", "faster_rcnn-mmdet faster_rcnn-mmdet")
SETTINGS = ("alike", "narrow", "half labelled", "other classes", "bfloat16")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "frs": [{"region": region, "threshold": 0.4} for region in ("richness", "tp", "tp_fp", "tp_fn", "tp_tn")]
    + [{"scores": "cell"}, {"normaliser": "image"}, {"centerness": True}, {"region": "tp_fn", "normaliser": "image"}]
    + [{"normaliser": "pyramid", "standardise": "channel"}, {"standardise": "level"}, {"boxes": "decoded"}],
    "cwd": [{"on": "logits"}, {"temperature": 4.0}],
    "pkd": [{"levels": 2}],
    "mgd": [{"hidden": 0.3}, {"levels": 2}],
    "pfi": [
        {"power": 2},
        {"normaliser": "norm"},
        {"score": "sigmoid"},
        {"detach": True, "standardise": "level"},
        {"adapter": "always"},
    ],
    "ld": [{"normaliser": "positives"}, {"temperature": 5.0, "class_temperature": 1.0}],
    "soft_labels": [{"loss": "kl", "temperature": 2.0}, {"boxes": "raw"}, {"anchors": "all"}],
    "rank_mimicking": [{"score": "logit", "temperature": 2.0}],
    "dist2": [
        {"strategies": "N2N"},
        {"draw": "one"},
        {"supervision": "both"},
        {"supervision": "teacher"},
        {"align": True},
    ],
    "fkd": [{"weigh_channels": True}, {"weigh_channels": False}, {"temperature": 0.3}],
    "fgd": [{"temperature": 2.0}],
    "crosskd": [{"convolution": 1}],
    "gid": [{"count": 3}],
    "fine_grained": [{"share": 0.7}],
    "pairwise": [{"max_cells": 10}],
}


def methods() -> Found:
    """Every method alone, with every pair that it serves; and the weights that it has by default."""
    for name, own in product(understudy.METHODS, FAMILIES):
        for setting in SETTINGS:
            yield from lesson(name, own, own, setting, {})
        for options in OPTIONS.get(name, ()) if own != "faster_rcnn" else ():
            yield from lesson(name, own, own, "alike", options)
        with suppress(understudy.UserError):  # a term has no weight, or is not for this pair
            weights = understudy.build_methods({name: {}}, *[detector_of(own, "student").spec] * 2)[1]
            steps = (0, 250, 9999)
            yield f"{name}/{own}/weights", {term: [one.at(step) for step in steps] for term, one in weights.items()}
    for name, pair in product(understudy.METHODS, CROSSED):
        yield from lesson(name, *pair.split(), "narrow", {})


def lesson(name: str, own: str, theirs: str, setting: str, options: dict[str, Any]) -> Found:
    """Which terms a method has for a pair, its adapters, and three steps of a student with all of these terms."""
    student = copy.deepcopy(detector_of(own, "narrow" if setting == "narrow" else "student")).train()
    teacher = detector_of(theirs, "teacher").requires_grad_(False).eval()
    specs, pairing = (student.spec, teacher.spec), None
    if own != theirs or setting == "other classes":
        pairing = understudy.pair(*specs, *((CLASSES, OTHER_CLASSES) if setting == "other classes" else ()))
        specs = pairing.student, pairing.teacher
    label = f"{name}/{own} from {theirs}/{setting} {json.dumps(options) if options else ''}".strip()
    terms = (*understudy.METHODS[name].terms, *understudy.METHODS[name].optional_terms)
    served = [term for term in terms if built(name, terms, [term], specs, options)]
    yield f"{label}/terms", " ".join(served)
    if not served:
        return
    torch.manual_seed(11)
    learner = understudy.Learner(student, made := built(name, terms, served, specs, options), pairing)
    yield f"{label}/adapters", digest(nn.ModuleList(made).state_dict())
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01, momentum=0.9)
    losses: dict[str, list[float]] = {}
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "bfloat16"):
            with torch.no_grad():
                answers = teacher(IMAGES, SIZES)
            labelled = [True, False] if setting == "half labelled" else None
            found = learner(IMAGES, TARGETS, answers, SIZES, labelled, teacher=teacher)
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        for term, value in found.items():
            losses.setdefault(term, []).append(value.item())
    yield f"{label}/losses", losses
    yield f"{label}/trained", digest(learner.state_dict())


def built(name: str, terms: Sequence[str], wanted: Sequence[str], specs: tuple, options: dict[str, Any]) -> list[Any]:
    """A list of the method with the terms that are wanted, each of weight 1; empty where it does not serve the pair."""
    with suppress(understudy.UserError):
        weights = {f"{term}_weight": float(term in wanted) for term in terms}
        return understudy.build_methods({name: weights | options}, *specs)[0]
    return []


@cache
def detector_of(kind: str, role: str) -> Any:
    """The detector that plays a role; a narrow student has other channels than the teacher."""
    family, _, conventions = kind.partition("-")
    width: dict[str, Any] = {"neck": 16, "width_mult": 1 / 16} if role == "narrow" else {}
    seed = 7 if role == "teacher" else 8
    return opinionated(tiny(f"{family}_resnet18", seed, conventions=conventions or "torchvision", **width))


# --- runs: what they write, and what is measured of them afterwards ---------------------------------------------------

TINY: dict[str, Any] = {"data": {"shorter_side": 64, "longer_side": 64, "workers": 0}, "accelerator": "cpu"}
TINY |= {"optimizer.scale_lr": False, "schedule.epochs": 3, "batch_size": 2, "log_every": 3}
TINY |= {"schedule.name": "1x", "evaluate_every": 1, "detector.backbone_weights": None, "detector.norm": "batch"}
TINY |= {"detector.anchor_scale": None, "data.colour": 0.0, "data.scale": 1.0}
MOBILENET = {"detector": {"name": "fcos_mobilenet_v2", "width_mult": 0.35, "neck_channels": 16}}
RESNET = {"detector.width_mult": 0.125, "detector.neck_channels": 24}
SEVERAL = {
    "frs": {"class_weight": 0},
    "hint": {"feature_weight": 0.1},
    "mgd": {},
    "gid": {"class_weight": 0, "box_weight": 0},
}
RUNS: dict[str, dict[str, Any]] = {  # those with methods are distilled from the first
    "teacher": MOBILENET,
    "plain": MOBILENET | {"seed": 1},
    "frs": MOBILENET | {"methods": "frs"},
    "interrupted": MOBILENET | {"methods": "frs"},
    "dist2": MOBILENET | {"methods": {"dist2": {"ramp_steps": 4}}, "inherit": True},
    "unlabelled": MOBILENET | {"methods": "cwd", "data.unlabelled": "more"},
    "several": RESNET | {"detector.name": "retinanet_resnet18", "methods": SEVERAL, "data.shorter_side": [64, 96]},
    "gfl": RESNET | {"detector.name": "gfl_resnet18", "precision": "bf16", "optimizer.clip_norm": 1.0},
    "faster_rcnn": RESNET
    | {"detector.name": "faster_rcnn_resnet18", "detector.settings": {"fc_channels": 16}, "schedule.name": "cosine"}
    | {"optimizer.name": "adamw", "detector.conventions": "mmdet"},
}


def training() -> Found:
    """Runs of every kind, one of them interrupted and resumed, and how good they are."""
    make_scenes, evaluate = moved("make_scenes", "data.scenes"), moved("evaluate", "evaluation.evaluate", "evaluation")
    scenes = make_scenes(Path("scenes"), train=8, val=4, size=64, seed=0)
    make_scenes(Path("more"), train=6, val=1, size=80, seed=1)
    yield "scenes", [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(scenes.rglob("*.*"))]
    for name, changes in RUNS.items():
        run, config = Path(name), TINY | {"data.path": "scenes"} | changes
        hook = register_optimizer_step_post_hook(partial(press_ctrl_c, name, count(1)))
        with suppress(KeyboardInterrupt):
            if "methods" in changes:
                understudy.distill(config, run=run, teacher="teacher")
            else:
                understudy.train(config, run=run)
        hook.remove()
        if name == "interrupted":
            understudy.resume(run)
        for file in ("losses.csv", "metrics.csv"):
            rows = list(csv.DictReader((run / file).read_text().splitlines()))
            cells = {column: [float(row[column] or "nan") for row in rows] for column in rows[0]}
            yield f"{name}/{file}", numbers(cells)
        for file in ("best.ckpt", "last.ckpt"):
            yield f"{name}/{file}", digest(torch.load(run / file, weights_only=True)["state_dict"])
        yield f"{name}/result.json", numbers(json.loads((run / "result.json").read_text()))
        yield f"{name}/evaluated", numbers(evaluate(run, scenes).to_dict())
    table = moved("summarise", "compare.table", "results")(list(RUNS), measure_speed=False).to_dict()
    yield "table", [numbers(row) for row in table["rows"]]
    swap_test = moved("swap_test", "analysis.swap", "swap")
    yield "swap test", numbers(swap_test("teacher", "dist2", scenes).to_dict())


def press_ctrl_c(name: str, steps: Iterator[int], *_: Any) -> None:
    """Interrupt the run of that name in its sixth step."""
    if next(steps) == 6 and name == "interrupted":
        signal.raise_signal(signal.SIGINT)


def numbers(values: Any) -> Any:
    """Plain values without texts and what tells times."""
    if isinstance(values, Mapping):
        kept = {name: numbers(value) for name, value in values.items() if "second" not in name}
        return {name: value for name, value in kept.items() if value not in (None, [])}
    if isinstance(values, list | tuple):
        return [number for value in values if (number := numbers(value)) is not None]
    return None if isinstance(values, str) else values


# --- exports and imports: how detectors are built, and what they see --------------------------------------------------


def exports() -> Found:
    """Exported runs: by the code that lies beside them, and imported again."""
    for name in ("teacher", "gfl", "faster_rcnn"):
        out = Path(f"exported_{name}")
        moved("export", "export")(name, out)
        yield f"{name}/weights", digest(torch.load(out / "weights.pt", weights_only=True))
        (out / "detector").rename(out / f"detector_{name}")  # a module has one name
        sys.path.insert(0, str(out.resolve()))
        network, classes = importlib.import_module(f"detector_{name}").load(out)
        yield f"{name}/classes", " ".join(classes)
        with torch.no_grad():
            yield f"{name}/detections", network([IMAGES[0, :, :50, :77]])
        yield f"{name}/imported", sees(understudy.import_checkpoint(out, f"{name}.ckpt"))


LAYERS = {"retinanet": "retina", "gfl": "gfl", "fcos": "conv", "faster_rcnn": ""}
MMDET_NAMES = (  # of parameters, from ours
    (r"^backbone\.body", "backbone"),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0", r"neck.lateral_convs.\1.conv"),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0", r"neck.fpn_convs.\1.conv"),
    (r"^backbone\.fpn\.extra_blocks\.p6", "neck.fpn_convs.3.conv"),
    (r"^backbone\.fpn\.extra_blocks\.p7", "neck.fpn_convs.4.conv"),
    (r"^head\.classification_head\.conv\.(\d)\.0", r"bbox_head.cls_convs.\1.conv"),
    (r"^head\.classification_head\.conv\.(\d)\.1", r"bbox_head.cls_convs.\1.gn"),
    (r"^head\.regression_head\.conv\.(\d)\.0", r"bbox_head.reg_convs.\1.conv"),
    (r"^head\.regression_head\.conv\.(\d)\.1", r"bbox_head.reg_convs.\1.gn"),
    (r"^head\.classification_head\.cls_logits", "bbox_head.LAYER_cls"),
    (r"^head\.regression_head\.bbox_reg", "bbox_head.LAYER_reg"),
    (r"^head\.\w+\.bbox_ctrness", "bbox_head.conv_centerness"),
    (r"^rpn\.head\.conv\.0\.0", "rpn_head.rpn_conv"),
    (r"^rpn\.head\.cls_logits", "rpn_head.rpn_cls"),
    (r"^rpn\.head\.bbox_pred", "rpn_head.rpn_reg"),
    (r"^roi_heads\.box_head\.fc6", "roi_head.bbox_head.shared_fcs.0"),
    (r"^roi_heads\.box_head\.fc7", "roi_head.bbox_head.shared_fcs.1"),
    (r"^roi_heads\.box_predictor\.cls_score", "roi_head.bbox_head.fc_cls"),
    (r"^roi_heads\.box_predictor\.bbox_pred", "roi_head.bbox_head.fc_reg"),
)
MMDET_CONFIG = """
model = dict(
    backbone=dict(type='ResNet', depth=18, style='caffe', base_channels=8),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_output', num_outs=5),
    data_preprocessor=dict(type='DetDataPreprocessor', bgr_to_rgb=False, mean=[103.0, 116.0, 123.0], std=[57, 57, 58]),
    test_cfg=dict(max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), nms_pre=500, score_thr=0.1))
test_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', keep_ratio=True, scale=(640, 320))]))
"""


def imports() -> Found:
    """Detectors of mmdet and torchvision with random weights, and, where they are, files that mmdet itself wrote."""
    for family in FAMILIES:
        meta: dict[str, Any] = {"dataset_meta": {"classes": CLASSES}}
        meta |= {} if family == "faster_rcnn" else {"cfg": MMDET_CONFIG}
        torch.save({"meta": meta, "state_dict": mmdet_state(family)}, f"{family}.pth")
        yield f"mmdet/{family}", sees(understudy.import_checkpoint(f"{family}.pth", f"{family}_mmdet.ckpt"))
    for name in ("fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn"):
        torch.manual_seed(4)
        network = get_model(name, weights=None, weights_backbone=None)
        for key, weight in network.named_parameters():
            if key.endswith(("cls_score.bias", "cls_logits.weight")):  # so that something is detected
                nn.init.normal_(weight, std=1.0 if key.endswith("bias") else 0.1)
        torch.save(network.state_dict(), f"{name}.pth")
        yield f"torchvision/{name}", sees(understudy.import_checkpoint(f"{name}.pth", classes="coco"))
    for file in sorted((Path(__file__).parents[2] / "shared/reference/mmdet").glob("*/checkpoint.pth")):
        output = f"{file.parent.name}_reference.ckpt"
        yield f"mmdet's own/{file.parent.name}", sees(understudy.import_checkpoint(file, output, classes="a,b,c,d,e"))


def mmdet_state(family: str) -> dict[str, Tensor]:
    """The weights of a detector as mmdet saves them."""
    options: dict[str, Any] = {"neck": 32, "norm": "frozen", "conventions": "mmdet"}
    options["settings"] = {"groups": 32, "extra_levels": "on_output"}
    detector, state = tiny(f"{family}_resnet18", 3, **options), {}
    for name, value in detector.state_dict().items():
        if name.endswith(("running_mean", "running_var", "scales")):
            value.uniform_(-0.1, 0.1).add_(0 if name.endswith("mean") else 1)
    for name, value in opinionated(detector).network.state_dict().items():
        if ".box_predictor.cls_score." in name:  # mmdet has the background last
            value = value.roll(-1, 0)
        if ".box_predictor.bbox_pred." in name:  # and no box for it
            value = value[4:]
        for ours, theirs in MMDET_NAMES:
            name = re.sub(ours, theirs.replace("LAYER", LAYERS[family]), name)
        if name.endswith("scales"):
            state |= {f"bbox_head.scales.{level}.scale": scale for level, scale in enumerate(value)}
        else:
            state[name] = value
    return state


def sees(checkpoint: Any) -> dict[str, Any]:
    """How the detector of a checkpoint is built, and what it sees."""
    with torch.no_grad():
        outputs = checkpoint.detector(IMAGES, SIZES)
    return record(outputs) | {
        "build": {name: json.dumps(value) for name, value in checkpoint.meta["build"].items()},
        "classes": " ".join(checkpoint.classes),
        "category ids": checkpoint.meta["category_ids"],
        "assumptions": len(checkpoint.meta["imported"]["assumptions"]),
        "weights": digest(checkpoint.detector.state_dict()),
        "detections": checkpoint.detector.detect(outputs, SIZES),
    }


# --- recording and comparing ------------------------------------------------------------------------------------------


def record_all(file: Path) -> None:
    """Compute everything and write it."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)  # its bfloat16 gradients of 1 x 1 maps come from memory that nobody wrote
    print(f"understudy is {Path(understudy.__file__).parent}", file=sys.stderr)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for group in (detectors, methods, training, exports, imports):
            torch.set_flush_denormal(False)  # training switches it on
            start = time.monotonic()
            found[group.__name__] = dict(pair for name, value in group() for pair in entries(name, value))
            print(f"{group.__name__}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    file.write_text(json.dumps(found, indent=0) + "\n")


def entries(name: str, value: Any) -> Found:
    """A value as plain entries: numbers, texts, lists of numbers, and digests of tensors."""
    if isinstance(value, Tensor):
        yield name, digest({str(value.dtype): value}) if value.dim() else value.item()
    elif isinstance(value, Mapping) and "sha256" not in value:
        for part in value:
            yield from entries(f"{name}/{part}", value[part])
    elif isinstance(value, list | tuple) and any(isinstance(each, Tensor | Mapping | list | str) for each in value):
        for place, each in enumerate(value):
            yield from entries(f"{name}/{place}", each)
    else:
        yield name, value


def digest(tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """The sum of all values, and hashes of their bytes, and of names, types and shapes; in the order of the names."""
    names, bits, total = hashlib.sha256(), hashlib.sha256(), 0.0
    for name, tensor in sorted(tensors.items()):
        if tensor is not None:
            flat = tensor.detach().contiguous().flatten()
            names.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            bits.update(flat.view(torch.uint8).numpy().tobytes())
            total += flat.double().sum().item()
    return {"sum": total, "names": names.hexdigest()[:12], "sha256": bits.hexdigest()[:32]}


def compare(before: Path, after: Path) -> bool:
    """Print what two records have in common and what not; whether they are the same."""
    records = [json.loads(file.read_text()) for file in (before, after)]
    same = True
    for group in dict.fromkeys((*records[0], *records[1])):
        own, other = (record.get(group, {}) for record in records)
        both = [key for key in own if key in other]
        unlike = [key for key in both if json.dumps(own[key]) != json.dumps(other[key])]  # where nan equals nan
        print(f"{group}: {len(both) - len(unlike)} of {len({*own, *other})} entries are equal to the bit")
        for key in unlike:
            print(f"  {key}: {difference(own[key], other[key])}")
        for file, keys in ((before, [*own.keys() - other.keys()]), (after, [*other.keys() - own.keys()])):
            for key in sorted(keys):
                print(f"  {key}: only in {file}")
        same = same and not unlike and len(both) == len({*own, *other})
    return same


def difference(own: Any, other: Any) -> str:
    """How two entries differ, in words."""
    said = f"{own!r:.200} and {other!r:.200}"
    if isinstance(own, dict) and isinstance(other, dict):
        said = f"{'bits' if own['names'] == other['names'] else 'names or shapes'}, {said}"
    one, two = ([each["sum"]] if isinstance(each, dict) else each for each in (own, other))
    one, two = (each if isinstance(each, list) else [each] for each in (one, two))
    if len(one) != len(two) or not all(isinstance(each, int | float) for each in one + two):
        return said
    return f"{said}, apart by {max(abs(a - b) for a, b in zip(one, two, strict=True)):.3g}"


def main() -> None:
    """Record, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record", help="compute everything and write it").add_argument("file", type=Path)
    comparing = commands.add_parser("compare", help="say what differs; exit with 1 if anything does")
    comparing.add_argument("files", type=Path, nargs=2)
    options = parser.parse_args()
    if options.command == "record":
        record_all(options.file.resolve())
    elif not compare(*options.files):
        sys.exit(1)


if __name__ == "__main__":
    main()
