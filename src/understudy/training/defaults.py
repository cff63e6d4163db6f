"""What a config leaves open, and data, teacher and machine decide.

A run's config is completed before the run is made, and is written complete, so a resumed run and a repeated one do not
depend on the rules. ``understudy suggest`` shows the same choices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L

from understudy.checkpoints import read_metadata
from understudy.class_balance import can_balance_classes, uneven_classes
from understudy.config import DistillConfig, TrainConfig, open_keys, with_values
from understudy.config.methods import DEFAULT_METHODS
from understudy.data.batching import groups_of
from understudy.data.loading import check_batch_size
from understudy.detectors.anchor_scale import ScaleFit, best_scale
from understudy.detectors.backbone_weights import describe_download, published_weights
from understudy.detectors.families import family_of
from understudy.detectors.larger_images import nearest_scale
from understudy.errors import UserError
from understudy.text import as_yaml
from understudy.training.assembly import build_networks
from understudy.training.cost import Cost, Sample, cost_of, how_to_shorten, measure_step, too_large
from understudy.training.image_size import ImageSize, longest
from understudy.training.launching import is_first_process
from understudy.training.machine import Machine
from understudy.training.padding import padded_pixels
from understudy.training.sources import Sources
from understudy.training.teacher_cache import changing_pixels, keeps_outputs

IMAGES_SEEN, PASSES, MOST_EPOCHS = 24_000, 12, 1000
"""A run sees so many images, and each image so often in addition, up to a number of epochs: 300 images 92 times, 1,000
images 36 times, COCO's 118,000 images 12 times, as in its 1x schedule."""

FEW_IMAGES, OFTEN = 2000, 24
"""Up to so many training images, each seen so many times or more, are varied in colour and scale: without it, a
student's AP falls towards the end of its run (measured with 205 and 1,000 images)."""

COLOUR, SCALE = 0.5, 1.5
"""How far they are varied."""

EACH_VARIANT = 4
"""How often each variant of an image comes in a distilled run whose teacher's outputs can then be kept."""

EVALUATIONS = 20
"""Evaluations of a run at most."""

IMAGES_PER_STEP = 16
"""The images of a step that learning rates refer to."""

FEWEST_FOR_STATISTICS = 4
"""Images of a process from which the statistics of a batch are better than those of ImageNet."""

SHARE_OF_MEMORY = 0.6
"""Part of the memory that a batch size chosen here may take; the rest is for other programs, and for errors."""

PADDING_SAVED = 0.05
"""Part of the pixels of a batch from which grouping images is worth a less random order."""

BATCHES_OF_SIZE = 4
"""Batches of an epoch per padded size, from which images are grouped by it; with fewer, most come in the remainders."""

WEIGHTS = "IMAGENET1K_V1"
"""torchvision's weights that papers start from; every published backbone has them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A value that was chosen.

    Attributes:
        key: of the config.
        value: of the key.
        reason: in words; empty where there was nothing to choose.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Write the choice as it would be given, with its reason."""
        return f"{self.key}={as_yaml(self.value)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Derived:
    """A complete config.

    Attributes:
        config: the config.
        choices: the values that it left open, in the order of the rules.
        cost: what the run takes; None: it was not measured.
        failure: what prevented the measurement; None: nothing.
    """

    config: TrainConfig
    choices: tuple[Choice, ...]
    cost: Cost | None
    failure: Exception | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user: what was chosen."""
        told = [f"  {choice}" for choice in self.choices if choice.reason]
        return ("Chosen for this data and machine (to change one, give KEY=VALUE):", *told) if told else ()

    @property
    def estimate(self) -> tuple[str, ...]:
        """Lines for the user: what the run takes, and what to do if that is too much."""
        if self.cost is None:
            return (f"No estimate of time and memory: {self.why_not}",) if self.failure else ()
        return tuple(line for line in (f"Estimate: {self.cost}", self.warning, self.advice) if line)

    @property
    def why_not(self) -> str:
        """Why there is no estimate, in a line; empty: nothing prevented it."""
        error = self.failure
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}" if error else ""

    @property
    def warning(self) -> str:
        """A warning of a run that does not fit into the memory; empty: it does, or it is not known."""
        return too_large(self.config, self.cost) if self.cost else ""

    @property
    def advice(self) -> str:
        """How a run of many hours takes less time; empty: there is no need, or it is not known."""
        return how_to_shorten(self.config, self.cost, [each.key for each in self.choices]) if self.cost else ""


@dataclass
class _Facts:
    """What the rules look at.

    Attributes:
        sources: the images.
        trainer: for device and precision.
        machine: with the number of the run's processes.
        measured: the measurement of a step, once it was needed.
    """

    sources: Sources
    trainer: L.Trainer
    machine: Machine
    measured: Sample | Exception | None = field(default=None)

    def sample(self, config: TrainConfig) -> Sample | Exception | None:
        """Measure a step of the run, once."""
        if self.measured is None:
            self.measured = measure_step(
                with_values(config, {"detector.norm": _plain_norm(config)}), self.sources, self.trainer
            )
        return self.measured


def derive(config: TrainConfig, sources: Sources, trainer: L.Trainer, *, measure: bool = True) -> Derived:
    """Complete a config. Values that it has are never changed.

    Args:
        config: of a new run, with absolute paths.
        sources: its images.
        trainer: its trainer.
        measure: whether to estimate time and memory; it is done in any case where the batch size depends on it.

    Raises:
        UserError: a batch has more images than the data set, the run does not fit into the memory whatever its batch
            size, or the teacher cannot be read.
    """
    if config.batch_size is not None:  # before its batches are drawn, which takes minutes for a huge one
        check_batch_size(sources.train, config.batch_size, trainer.world_size)
    # Looked at before a step is measured, which takes some of the free memory.
    machine = Machine.of(trainer.strategy.root_device, trainer.world_size, trainer.num_devices)
    facts, choices = _Facts(sources, trainer, machine), []
    for key in open_keys(config):
        choice = RULES[key](config, facts)
        config = with_values(config, {key: choice.value})
        choices.append(choice)
    sample = facts.sample(config) if measure and is_first_process() else facts.measured
    if not isinstance(sample, Sample):
        return Derived(config, tuple(choices), None, sample)
    return Derived(config, tuple(choices), cost_of(config, sample, sources, facts.machine))


# --- the rules: a function for each key -------------------------------------------------------------------------------


def _shorter_side(config: TrainConfig, facts: _Facts) -> Choice:
    size = ImageSize.beside_teacher(config) or ImageSize.of(facts.sources.train, facts.machine.device.type)
    return Choice("data.shorter_side", [size.shorter_side], size.reason)


def _longer_side(config: TrainConfig, facts: _Facts) -> Choice:
    key, own = "data.longer_side", ImageSize.beside_teacher(config)
    if own and config.data.shorter_side == [own.shorter_side]:
        return Choice(key, own.longer_side, own.reason)
    return Choice(key, longest(max(config.data.shorter_side)), "5/3 of data.shorter_side")


def _teacher_scale(config: TrainConfig, facts: _Facts) -> Choice:
    own, side = ImageSize.beside_teacher(config), config.data.shorter_side[-1]
    scale = nearest_scale(own.shorter_side, side) if own else 1
    reason = f"its teacher was trained at {own.shorter_side} pixels, on the same data" if own and scale > 1 else ""
    return Choice("teacher_scale", scale, reason)


def _epochs(config: TrainConfig, facts: _Facts) -> Choice:
    count = len(facts.sources.train)
    epochs = min(MOST_EPOCHS, PASSES + round(IMAGES_SEEN / count))
    reason = f"{IMAGES_SEEN:,} images, and {PASSES} times each of {count:,}"
    return Choice("schedule.epochs", epochs, reason if epochs < MOST_EPOCHS else f"at most {MOST_EPOCHS:,}")


def _colour(config: TrainConfig, facts: _Facts) -> Choice:
    return _variation(config, facts, "data.colour", COLOUR, 0.0)


def _scale(config: TrainConfig, facts: _Facts) -> Choice:
    return _variation(config, facts, "data.scale", SCALE, 1.0)


def _variation(config: TrainConfig, facts: _Facts, key: str, varied: float, plain: float) -> Choice:
    epochs = config.schedule.epochs
    few = len(facts.sources.train) <= FEW_IMAGES and epochs >= OFTEN
    return Choice(key, varied, f"few images, each is seen {epochs} times") if few else Choice(key, plain, "")


def _evaluate_every(config: TrainConfig, facts: _Facts) -> Choice:
    every = -(-config.schedule.epochs // EVALUATIONS)
    return Choice("evaluate_every", every, f"at most {EVALUATIONS} evaluations")


def _backbone_weights(config: TrainConfig, facts: _Facts) -> Choice:
    family = family_of(config.detector.name)
    backbone = config.detector.name.removeprefix(f"{family.name}_") if family else ""
    if family is None or family.backbones is not None or WEIGHTS not in published_weights(backbone):
        reason = f"random initialisation, torchvision has no weights of {backbone or 'this backbone'}"
    elif config.detector.width_mult != 1:
        reason = f"random initialisation, torchvision has weights of {backbone} for width_mult=1 only"
    else:
        return Choice("detector.backbone_weights", WEIGHTS, describe_download(backbone, WEIGHTS))
    return Choice("detector.backbone_weights", None, reason)


def _head_norm(config: TrainConfig, facts: _Facts) -> Choice:
    key, family = "detector.head_norm", family_of(config.detector.name)
    if family is None or not family.plain_head:
        return Choice(key, None, "")
    if found := _as_head_starts(config, key):
        return found
    if config.detector.conventions == "mmdet":
        return Choice(key, None, "as in mmdet")
    return Choice(key, "group", f"{family.title}s train faster with GroupNorm in the head")


def _as_head_starts(config: TrainConfig, key: str) -> Choice | None:
    """Choose what the checkpoint was built with whose weights the head starts with; None: it starts with no other's."""
    source = config.teacher if isinstance(config, DistillConfig) and config.inherit else config.init
    build = read_metadata(source)["build"] if source is not None else None
    if build is None or family_of(build["name"]) is not family_of(config.detector.name):
        return None
    return Choice(key, build.get(key.rpartition(".")[2]), f"that of {source}, whose weights the head starts with")


def _anchor_scale(config: TrainConfig, facts: _Facts) -> Choice:
    key, detector = "detector.anchor_scale", config.detector
    family = family_of(detector.name)
    if family and "anchor_scale" not in family.refused:
        if started := _as_head_starts(config, key):  # with other anchors, its weights would not be taken
            return started
        if isinstance(config, DistillConfig):
            build = read_metadata(config.teacher)["build"]
            if family_of(build["name"]) is family:
                return _beside_teacher(config, facts, build.get("anchor_scale"))
    found = _best_scale(config, facts)
    return Choice(key, found.scale, str(found)) if found else Choice(key, None, "")


def _beside_teacher(config: DistillConfig, facts: _Facts, theirs: float | None) -> Choice:
    """Choose the scale of the anchors of a student, given that of a teacher of the same family."""
    key, told = "detector.anchor_scale", "that of the teacher, which is of the same family"
    found = _best_scale(config, facts, theirs)
    if found is None or not found.clearly:
        return Choice(key, theirs, told)
    if config.methods != DEFAULT_METHODS:  # they may need the same anchors
        return Choice(key, theirs, f"{told}; {found.scale:g} fits better: {found}")
    alone = _best_scale(config, facts)  # as the plain student's, so that both are the same detector
    reason = (
        f"as without the teacher, whose anchors fit the boxes worse, and the default methods do not need them; {alone}"
    )
    return Choice(key, alone.scale if alone else None, reason)


def _best_scale(config: TrainConfig, facts: _Facts, before: float | None = None) -> ScaleFit | None:
    detector, size = config.detector, (config.data.shorter_side[-1], config.data.longer_side)
    try:
        return best_scale(detector.name, facts.sources.train, *size, detector.conventions, detector.settings, before)
    except UserError:  # which the detector itself raises, too, unless its settings suit its own width only
        return None


def _class_balance(config: TrainConfig, facts: _Facts) -> Choice:
    family, data = family_of(config.detector.name), facts.sources.train
    can = family is not None and can_balance_classes(family.facts)
    reason = uneven_classes(data.records.labels[~data.records.ignore], data.classes) if can else ""
    return Choice("class_balance", bool(reason), reason)


def _workers(config: TrainConfig, facts: _Facts) -> Choice:
    cores, on_gpu = facts.machine.cores, facts.machine.device.type == "cuda"
    workers = min(8, max(1, cores - 1)) if on_gpu else min(4, cores // 4)
    where = "on a GPU" if on_gpu else "which also compute the steps"
    return Choice("data.workers", workers, f"{cores} core{'s' * (cores > 1)}, {where}")


def _batch_size(config: TrainConfig, facts: _Facts) -> Choice:
    machine, count, images = facts.machine, facts.machine.processes, len(facts.sources.train)
    usual = max(1, round(IMAGES_PER_STEP / count))
    sizes = [size for size in (usual, 8, 4, 2, 1) if size <= min(usual, max(1, images // count))]
    per_step = f"the learning rate refers to {IMAGES_PER_STEP} images per step"
    reason = per_step if sizes[0] == usual else f"training images: {images}"
    if count > 1:  # all must choose the same, and their memory may differ
        return Choice("batch_size", sizes[0], f"{sizes[0] * count} images per step over {count} processes; {reason}")
    sample = facts.sample(config)
    if not isinstance(sample, Sample):
        return Choice("batch_size", sizes[0], reason)
    costs = {size: cost_of(with_values(config, {"batch_size": size}), sample, facts.sources, machine) for size in sizes}
    fitting = [size for size, cost in costs.items() if _has_room(cost)]
    if not fitting:
        raise UserError(
            f"The run does not fit into the memory with batch_size=1: it needs {costs[1].shown_memory()}. Lower "
            f"data.shorter_side (now {config.data.shorter_side[-1]}), or use a smaller detector. To try nevertheless: "
            "batch_size=1"
        )
    if fitting[0] < sizes[0]:
        reason = f"{sizes[0]} would need {costs[sizes[0]].shown_memory()}"
    return Choice("batch_size", fitting[0], reason)


def _has_room(cost: Cost) -> bool:
    return cost.memory is None or (cost.fits and cost.bytes <= SHARE_OF_MEMORY * cost.memory.total)


def _group_by_aspect(config: TrainConfig, facts: _Facts) -> Choice:
    data, batch, found = facts.sources.train, config.batch_size, False
    size = max(config.data.shorter_side), config.data.longer_side
    sizes = len(set(groups_of(data.records.images[:, 1:3], "size", *size)))
    often = len(data) >= BATCHES_OF_SIZE * sizes * batch * facts.machine.processes
    mixed = fewest = padded_pixels(config.data, data, batch)[0]
    for grouped in (True, "size") if often else (True,):
        pixels = padded_pixels(config.data, data, batch, grouped=grouped)[0]
        if pixels <= (1 - PADDING_SAVED) * fewest:
            found, fewest = grouped, pixels
    reason = f"mixed batches would be padded to {mixed / fewest - 1:.0%} more pixels" if found else ""
    return Choice("data.group_by_aspect", found, reason)


def _unlabelled_batch(config: TrainConfig, facts: _Facts) -> Choice:
    return Choice("data.unlabelled_batch", config.batch_size, "")


def _norm(config: TrainConfig, facts: _Facts) -> Choice:
    norm = _plain_norm(config)
    reason = f"fewer than {FEWEST_FOR_STATISTICS} images per process" if norm == "frozen" else ""
    return Choice("detector.norm", norm, reason)


def _plain_norm(config: TrainConfig) -> str:
    """Return what ``detector.norm`` is, with the batch size as far as it is known."""
    if config.detector.norm != "auto":
        return config.detector.norm
    few = config.batch_size is not None and config.batch_size < FEWEST_FOR_STATISTICS
    return "frozen" if few and config.detector.backbone_weights is not None else "batch"


def _variants(config: TrainConfig, facts: _Facts) -> Choice:
    key, epochs = "data.variants", config.schedule.epochs
    alone = facts.machine.processes == 1  # several would each keep outputs of images that another one has next
    if isinstance(config, DistillConfig) and alone and epochs >= OFTEN and changing_pixels(config.data):
        count = math.ceil(epochs / EACH_VARIANT)
        few, images = with_values(config, {key: count}), facts.sources
        networks = build_networks(few, images.train, new=False)
        others = len(images.unlabelled or ())
        if networks.taught_by and keeps_outputs(few, [networks.learner], networks.taught_by, images.train, others):
            return Choice(key, count, f"each comes {EACH_VARIANT} times, so the teacher's outputs can be kept")
    return Choice(key, None, "")


RULES: dict[str, Callable[[TrainConfig, _Facts], Choice]] = {
    "data.shorter_side": _shorter_side,
    "data.longer_side": _longer_side,
    "teacher_scale": _teacher_scale,
    "schedule.epochs": _epochs,
    "data.colour": _colour,
    "data.scale": _scale,
    "evaluate_every": _evaluate_every,
    "detector.backbone_weights": _backbone_weights,
    "detector.head_norm": _head_norm,
    "detector.anchor_scale": _anchor_scale,
    "class_balance": _class_balance,
    "data.workers": _workers,
    "batch_size": _batch_size,
    "data.group_by_aspect": _group_by_aspect,
    "data.unlabelled_batch": _unlabelled_batch,
    "detector.norm": _norm,
    "data.variants": _variants,
}
"""The rules by key, in the order of :data:`.LEFT_OPEN`; each may read what those before it chose."""

SHARED_CHOICES = {
    "data.shorter_side",
    "data.longer_side",
    "teacher_scale",
    "schedule.epochs",
    "data.colour",
    "data.scale",
    "data.workers",
    "batch_size",
    "data.group_by_aspect",
    "data.unlabelled_batch",
    "data.variants",
}
"""Keys in which runs that share their batches must agree, whatever their detectors."""
