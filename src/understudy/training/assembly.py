"""Everything that a config names, opened and built: data, student, teacher, methods, and the callbacks.

Every fault of a config that fits no data, detector or machine is found here, before anything is written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from understudy.checkpoints import Checkpoint, build_options, load_checkpoint
from understudy.config import DataConfig, DistillConfig, TrainConfig, scale_of_teacher
from understudy.config.keys import Section
from understudy.config.methods import DEFAULT_METHODS
from understudy.data import Augmentation, DetectionData, as_paths, training_loader
from understudy.detectors import Detector, build_detector
from understudy.detectors.families import family_of
from understudy.detectors.larger_images import with_larger_images
from understudy.errors import UserError
from understudy.inheritance import Inheritance, inherit
from understudy.learner import Learner
from understudy.methods.loading import build_methods, given_share, resolve_options
from understudy.methods.shares import differs
from understudy.methods.weighting import TermWeight
from understudy.pairing import pair
from understudy.text import as_yaml
from understudy.training.averaging import AverageWeights
from understudy.training.checkpointing import KeepCheckpoints
from understudy.training.default_methods import default_methods
from understudy.training.engine import Engine
from understudy.training.fingerprints import fingerprints
from understudy.training.folder import RunFolder
from understudy.training.launching import is_first_process
from understudy.training.loss_log import LogLosses
from understudy.training.padding import images_of_step, smallest_size
from understudy.training.progress import ShowProgress
from understudy.training.pseudo_labels import PseudoLabels
from understudy.training.resuming import check_unchanged_data
from understudy.training.sources import Sources
from understudy.training.teacher_cache import fixed_variants, open_teacher
from understudy.training.teacher_check import CheckTeacher
from understudy.training.term_notes import NoteTerms
from understudy.training.validation import Validate
from understudy.training.warm_start import WarmStart, has_same_backbone, warm_start


@dataclass(frozen=True, slots=True)
class AssembledRun:
    """The parts of a run, ready to train.

    Attributes:
        folder: the run folder; nothing was written to it.
        engine: the training step, with the resolved config.
        trainer: Lightning's trainer, with the callbacks.
        loader: batches of the training split.
        validate: the callback that writes the result at the end.
        checkpoints: the callback that handles signals.
        average: the callback that averages the weights.
        facts: facts about the run, for ``environment.json``.
        notes: lines for the user.
        resumed: whether the run continues from its last checkpoint.
    """

    folder: RunFolder
    engine: Engine
    trainer: L.Trainer
    loader: DataLoader
    validate: Validate
    checkpoints: KeepCheckpoints
    average: AverageWeights
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    resumed: bool


def assemble(
    config: TrainConfig,
    folder: RunFolder,
    trainer: L.Trainer,
    saved: Mapping[str, Any] | None = None,
    sources: Sources | None = None,
) -> AssembledRun:
    """Build everything that a config names.

    Args:
        config: the run's config, complete (see :mod:`.defaults`).
        folder: the run folder; it is not touched.
        trainer: gets the callbacks and the number of epochs.
        saved: metadata of the checkpoint that the run is resumed from, or None.
        sources: the images of the config, if they are open already.

    Raises:
        UserError: the config does not fit the data, the detector, the teacher or the machine.
    """
    sources = sources or Sources.of(config)
    train_data, val_data, unlabelled = sources.train, sources.val, sources.unlabelled
    parts = build_networks(config, train_data, new=saved is None)
    _check_statistics(parts.learner.student, config, sources, trainer.world_size)
    check = None
    if isinstance(config, DistillConfig):
        config = config.model_copy(update={"methods": parts.methods})
        check = CheckTeacher(parts.teacher, val_data, config) if parts.teacher else None
    checkpoints = KeepCheckpoints(folder, saved["step"] if saved else 0)
    average = AverageWeights(config.ema)
    validate = Validate(folder, val_data, config, checkpoints, average, check)
    first = [*([check] if check else []), average]  # before the step is logged and saved
    callbacks = [*first, LogLosses(folder, config.log_every), NoteTerms(), checkpoints, validate, ShowProgress()]
    trainer.callbacks += callbacks  # ty: ignore[missing-attribute]
    trainer.fit_loop.max_epochs = config.schedule.epochs
    loader = make_loader(config, train_data, unlabelled, trainer.global_rank, trainer.world_size)
    count = len(unlabelled) if unlabelled else 0
    if saved:
        check_unchanged_data(saved, train_data, len(loader), count)
        loader.sampler.start = saved["step"] % len(loader)  # ty: ignore[missing-attribute]
    teacher = parts.taught_by
    distilled = isinstance(config, DistillConfig) and teacher is not None
    teacher_pass = open_teacher(config, [parts.learner], teacher, train_data, count) if distilled else None
    of_teacher = teacher_pass, _pseudo_labels(config, parts) if distilled else None
    engine = Engine(config, train_data, parts.learner, parts.weights, teacher, len(loader), count, saved, *of_teacher)
    facts, notes = _facts_and_notes(parts, unlabelled, pseudo=of_teacher[1] is not None)
    facts["training_images"] = len(train_data)
    if is_first_process():
        facts["fingerprints"] = fingerprints(train_data, val_data, unlabelled, teacher)
    notes = sources.notes + notes
    notes += parts.notes + _notes_on_weights(parts.weights) + _notes_on_long_ramps(config, engine.total_steps)
    if config.precision == "bf16" and "mobilenet" in config.detector.name and not torch.cuda.is_available():
        notes += ("precision=bf16: on CPUs, MobileNets trained 1.6 x slower with it than with precision=32",)
    new = saved is None
    return AssembledRun(folder, engine, trainer, loader, validate, checkpoints, average, facts, notes, resumed=not new)


def make_loader(
    config: TrainConfig, data: DetectionData, unlabelled: DetectionData | None, rank: int = 0, processes: int = 1
) -> DataLoader:
    """Make the loader of a run for one of its processes; see :func:`.training_loader`."""
    return training_loader(
        data,
        batch_size=config.batch_size,
        shorter_side=_shorter_sides(config.data),
        longer_side=config.data.longer_side,
        flip=config.data.flip,
        seed=config.seed,
        workers=config.data.workers,
        rank=rank,
        world_size=processes,
        group_by_aspect=config.data.group_by_aspect,
        unlabelled=unlabelled,
        unlabelled_batch=config.data.unlabelled_batch or 0,
        augmentation=Augmentation(config.data.colour, config.data.scale, fixed_variants(config.data)),
        teacher_scale=scale_of_teacher(config),
    )


def _contradictions(config: TrainConfig) -> Iterator[str]:
    """Describe keys that exclude each other, or have no effect."""
    if config.schedule.drops is not None and config.schedule.name == "cosine":
        yield "schedule.drops has no effect with schedule.name=cosine. Use 1x or 2x, or leave it out."
    if config.quantise and config.compile:
        yield "quantise=true does not work with compile=true: the layers change during the run. Leave one of them out."
    if not config.quantise and _is_changed(config, "quantise_from"):
        yield f"quantise_from={config.quantise_from:g} has no effect without quantise=true. Add it, or leave it out."
    if config.optimizer.name == "adamw" and _is_changed(config.optimizer, "momentum"):
        yield (
            f"optimizer.momentum={config.optimizer.momentum:g} has no effect with optimizer.name=adamw. Use sgd, or "
            "set it to 0.9, the default."
        )
    if config.schedule.warmup_steps == 0 and _is_changed(config.schedule, "warmup_factor"):
        yield (
            f"schedule.warmup_factor={config.schedule.warmup_factor:g} has no effect with schedule.warmup_steps=0. Use "
            "some steps, or set it to 0.001, the default."
        )
    if isinstance(config, DistillConfig):
        if config.teacher_cache == "off" and _is_changed(config, "teacher_cache_gb"):
            yield (
                f"teacher_cache_gb={config.teacher_cache_gb:g} has no effect with teacher_cache=off. Use auto, memory "
                "or a folder, or set it to 4, the default."
            )
        yield from _contradictions_of_balance(config)


def _is_changed(section: Section, key: str) -> bool:
    """Return whether a key has another value than its default, with which it was hardly given."""
    return getattr(section, key) != type(section).model_fields[key].default


def _contradictions_of_balance(config: DistillConfig) -> Iterator[str]:
    """Describe keys of the balance that have no effect; one with its default was hardly given."""
    share = 0.0 if config.balance == "off" else given_share(config.methods)
    changed = {
        key: value
        for key in ("balance", "balance_end", "balance_until")
        if (value := getattr(config, key)) not in ("off", DistillConfig.model_fields[key].default)
    }
    if share == 0:
        why = " with balance=off" if config.balance == "off" else ", since all terms have a weight"
        for key, value in changed.items():
            yield f"{key}={value:g} has no effect{why}. Leave it out, or let weights follow from shares."
    elif share is not None and "balance" in changed and differs(share, changed["balance"]):
        yield (
            f"balance={config.balance:g} contradicts the shares of the methods, which add up to {share:g}. Leave "
            "balance out, or let them add up to it."
        )


def resolve_config(config: TrainConfig) -> TrainConfig:
    """Return the config with absolute paths and the default of ``optimizer.lr``.

    The options of the methods are resolved by :func:`assemble`, since their defaults depend on the student; what
    depends on data and machine, by :mod:`.defaults`.
    """
    paths = [path.resolve() for path in as_paths(config.data.path)]
    data: dict[str, Any] = {"path": paths[0] if len(paths) == 1 else paths}
    if config.data.unlabelled is not None:
        data["unlabelled"] = config.data.unlabelled.resolve()
    if faults := list(_contradictions(config)):
        raise UserError(faults[0]) if len(faults) == 1 else UserError.listing("Keys that do not fit together:", faults)
    changes: dict[str, Any] = {"data": config.data.model_copy(update=data)}
    if isinstance(config, DistillConfig):
        changes["teacher"] = config.teacher.resolve()
        if isinstance(config.teacher_cache, Path):
            changes["teacher_cache"] = config.teacher_cache.resolve()
    if config.optimizer.lr is None and (family := family_of(config.detector.name)):
        changes["optimizer"] = config.optimizer.model_copy(update={"lr": family.sgd_lr})
    if config.init:
        changes["init"] = config.init.resolve()
    weights = config.detector.backbone_weights
    if weights not in (None, "auto") and Path(weights).exists():
        changes["detector"] = config.detector.model_copy(update={"backbone_weights": str(Path(weights).resolve())})
    return config.model_copy(update=changes)


def _shorter_sides(config: DataConfig) -> Sequence[int]:
    """Return the sizes that one is drawn from for each training image."""
    if config.shorter_side_mode == "choice":
        return config.shorter_side
    smallest, largest = min(config.shorter_side), max(config.shorter_side)
    if smallest == largest:
        raise UserError(
            f"data.shorter_side_mode=range needs a smallest and a largest size, got data.shorter_side={smallest}. Give "
            f"both, e.g. data.shorter_side='[480, {smallest}]', or leave data.shorter_side_mode out."
        )
    return range(smallest, largest + 1)


def _check_statistics(student: Detector, config: TrainConfig, sources: Sources, processes: int) -> None:
    """Refuse batches whose deepest feature map may have one value per channel, of which there is no variance."""
    images = images_of_step(config, unlabelled=bool(sources.unlabelled))
    images *= processes if config.detector.norm == "sync" else 1
    if images > 1 or not any(isinstance(each, _BatchNorm) and each.training for each in student.train().modules()):
        return
    height, width = smallest_size(config.data, sources.train)
    if max(height, width) <= max(student.spec.stage_strides, default=0):
        raise UserError(
            f"detector.norm={config.detector.norm} needs more than one value per channel, and with batch_size=1 the "
            f"deepest feature map of {student.spec.name} has only one for a training image of {width} x {height} "
            f"pixels (with padding). Set batch_size=2, use larger images (data.shorter_side, now "
            f"{min(config.data.shorter_side)}, and data.longer_side, now {config.data.longer_side}), or set "
            "detector.norm=frozen."
        )


@dataclass(frozen=True, slots=True)
class Networks:
    """The learner, the weights of its distillation terms, the teacher, and what the student began with.

    ``taught_by`` is the teacher's detector as it sees the images of a batch.
    """

    learner: Learner
    weights: Mapping[str, TermWeight]
    teacher: Checkpoint | None = None
    taught_by: Detector | None = None
    inheritance: Inheritance | None = None
    started: WarmStart | None = None
    methods: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # with all options
    notes: tuple[str, ...] = ()


def build_networks(config: TrainConfig, data: DetectionData, *, new: bool) -> Networks:
    """Build student, teacher and methods; the weights of a resumed run come from its checkpoint."""
    torch.manual_seed(config.seed)
    options = build_options(config, len(data.classes))
    source = load_checkpoint(config.init) if config.init and new else None
    covered = source is not None and has_same_backbone(source, options)
    student = build_detector(
        **options,
        backbone_weights=config.detector.backbone_weights if new and not covered else None,
        channel_order=config.detector.channel_order if new else "rgb",
        frozen_stages=config.detector.frozen_stages,
    )
    started = warm_start(student, source, data.classes, config.data.aliases) if source else None
    if not isinstance(config, DistillConfig):
        return Networks(Learner(student, class_balance=config.class_balance), {}, started=started)
    teacher = load_checkpoint(config.teacher)
    taught_by = with_larger_images(teacher.detector, scale_of_teacher(config))
    pairing = pair(student.spec, taught_by.spec, data.classes, teacher.classes, config.data.aliases)
    wanted, notes = config.methods, tuple[str, ...]()
    if wanted == DEFAULT_METHODS:
        wanted = default_methods(pairing.student, pairing.teacher, _balance(config))
        notes = (f"default methods for this pair: {as_yaml(wanted)}",)
    methods, weights = build_methods(wanted, pairing.student, pairing.teacher, _balance(config))
    resolved = resolve_options(wanted, student.spec, _balance(config))
    inheritance = inherit(student, teacher.detector, pairing) if config.inherit and new else None
    taught_by.requires_grad_(False).eval()
    learner = Learner(student, methods, pairing, class_balance=config.class_balance)
    return Networks(learner, weights, teacher, taught_by, inheritance, started, resolved, notes)


def _pseudo_labels(config: DistillConfig, parts: Networks) -> PseudoLabels | None:
    teacher, detector, pairing = parts.teacher, parts.taught_by, parts.learner.pairing
    if config.pseudo_labels == "off" or teacher is None or detector is None or pairing is None:
        return None
    return PseudoLabels(config.pseudo_labels, detector, pairing, len(teacher.classes))


def _balance(config: DistillConfig) -> float | None:
    """Return the share of the gradient of terms without a weight; None: they have default weights."""
    return None if config.balance == "off" else config.balance


def _facts_and_notes(
    parts: Networks, unlabelled: DetectionData | None, *, pseudo: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What student and teacher share, what was inherited, and the unlabelled images: for the folder and the user."""
    facts: dict[str, Any] = {}
    notes: list[str] = []
    if pairing := parts.learner.pairing:
        facts["pairing"] = pairing.facts()
        notes += [pairing.note] if pairing.note else []
    if parts.started:
        facts["init"] = parts.started.facts()
        notes.append(parts.started.note)
    if parts.inheritance:
        facts["inherited"] = parts.inheritance.facts()
        notes.append(parts.inheritance.note)
    if unlabelled:
        facts["unlabelled_images"] = len(unlabelled)
        what, learner = f"{len(unlabelled)} unlabelled images of {unlabelled.source}", parts.learner
        if pseudo or set(learner.distillation_terms) - set(learner.terms_with_truth):
            notes.append(f"{what} take part in the distillation")
        else:
            notes.append(
                f"{what} have little or no effect, since all terms read the ground truth, which these images lack. "
                "Give them the teacher's detections as labels (pseudo_labels=0.5), or leave out data.unlabelled"
            )
    return facts, tuple(notes)


def _notes_on_weights(weights: Mapping[str, TermWeight]) -> tuple[str, ...]:
    """Tell the shares of the gradient that the weights follow from, and the fixed weights."""
    if not weights:
        return ()
    shares = [f"{name} {each.share:.0%}" for name, each in weights.items() if each.share is not None]
    fixed = [f"{name} x {each.weight:g}" for name, each in weights.items() if each.share is None]
    parts = [f"shares of the gradient (balance): {', '.join(shares)}"] if shares else []
    return ("; ".join([*parts, f"fixed weights: {', '.join(fixed)}"] if fixed else parts),)


def _notes_on_long_ramps(config: TrainConfig, steps: int) -> tuple[str, ...]:
    """Warn of weights that are still growing when the run ends."""
    methods = config.methods if isinstance(config, DistillConfig) else {}
    ramps = {name: options["ramp_steps"] for name, options in methods.items()}
    return tuple(
        f"methods.{name}.ramp_steps={ramp} is longer than the run ({steps} steps): the weights reach only "
        f"{100 * TermWeight(1.0, ramp).at(steps - 1):.0f} % of their final values"
        for name, ramp in ramps.items()
        if ramp > steps
    )
