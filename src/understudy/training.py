"""Training runs: a teacher or a plain student, a distilled student, and going on with either.

Whatever can be wrong is found before the run folder is made: data, detector, teacher, methods and devices are put
together first. Lightning runs the loop over :class:`understudy.engine.Engine`; order of images, augmentation and
dropout are functions of (seed, epoch, image, step, rank), so that an interrupted and resumed run equals an
uninterrupted one to the bit.
"""

import contextlib
import errno
import logging
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.markup import escape
from torch.utils.data import DataLoader

from understudy.callbacks import Interrupted, KeepCheckpoints, LogLosses, NoteTerms, ShowProgress, Validate, say
from understudy.checkpoints import build_options, load_checkpoint, read_checkpoint, write_checkpoint
from understudy.config import DataConfig, DistillConfig, TrainConfig, dump_config, load_config
from understudy.data import DetectionData, open_data, open_unlabelled, training_loader
from understudy.detectors import Detector, build_detector
from understudy.engine import Engine
from understudy.errors import RunError, UserError
from understudy.inheritance import Inheritance, inherit
from understudy.learner import Learner
from understudy.methods import build_methods, resolve_options
from understudy.pairing import pair
from understudy.runs import RunFolder, drop_rows_after, is_first_process
from understudy.weighting import TermWeight

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}

MAY_CHANGE = (
    "run",
    "data.path",
    "data.workers",
    "data.unlabelled",
    "teacher",
    "detector.backbone_weights",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "evaluate_every",
    "log_every",
)
"""Keys of a run's config.yaml that may be edited before it is resumed: where things are, not what is trained."""


def train(config: TrainConfig) -> Path:
    """Train a detector, a teacher or a plain student, and return its run folder.

    Raises:
        UserError: the config does not fit the data, the detector or the machine; nothing was written.
        RunError: the run cannot go on; its folder holds everything up to the last checkpoint.
        KeyboardInterrupt: the user stopped it; the message says how to go on.
    """
    return _start(config)


def distill(config: DistillConfig) -> Path:
    """Train a student with a teacher and distillation methods, and return its run folder; raises as :func:`train`."""
    return _start(config)


def resume(run: Path) -> Path:
    """Go on with an interrupted run exactly where its last checkpoint was written.

    Raises:
        UserError: it is no run, it is finished, it is running, it never saved a checkpoint, or what it needs has
            changed since.
        RunError: as :func:`train`.
        KeyboardInterrupt: as :func:`train`.
    """
    folder = RunFolder.open(Path(run))
    with folder.locked():
        if folder.result.exists():
            raise UserError(f"{run} is finished; its evaluation is in {folder.result}.")
        if not folder.last.exists():
            raise UserError(f"{run} was stopped before it saved a checkpoint; delete it and start it anew.")
        saved = read_checkpoint(folder.last)["understudy"]
        assembled = _assemble(_written_config(folder, saved), folder, saved)
        if is_first_process():
            for file in (folder.losses, folder.metrics):
                drop_rows_after(file, saved["step"])
        return _fit(assembled)


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A run whose parts were found to fit together."""

    folder: RunFolder
    engine: Engine
    trainer: L.Trainer
    loader: DataLoader
    validate: Validate
    checkpoints: KeepCheckpoints
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    resumed: bool


def _start(config: TrainConfig) -> Path:
    folder = RunFolder(config.run)
    assembled = _assemble(_resolved(config), folder)
    if is_first_process():
        RunFolder.create(config.run, dump_config(assembled.engine.config), assembled.facts)
    with folder.locked():
        return _fit(assembled)


def _assemble(config: TrainConfig, folder: RunFolder, saved: Mapping[str, Any] | None = None) -> _Assembled:
    """Open and build everything that a config names; every misfit is found here, before anything is written.

    Args:
        config: of the run.
        folder: of the run; not touched.
        saved: the metadata of the checkpoint that the run goes on from, or None.
    """
    train_data, val_data = _open_splits(config.data)
    unlabelled = _open_unlabelled(config, train_data, val_data)
    learner, weights, teacher, inheritance = _build(config, train_data, new=saved is None)
    if isinstance(config, DistillConfig):  # what is wrong with its methods was found when they were built
        config = config.model_copy(update={"methods": resolve_options(config.methods, learner.student.family)})
    validate, checkpoints = Validate(folder, val_data, config), KeepCheckpoints(folder, saved["step"] if saved else 0)
    callbacks: list[L.Callback] = [
        LogLosses(folder, config.log_every),
        NoteTerms(),
        validate,
        checkpoints,
        ShowProgress(),
    ]
    trainer = _trainer(config, folder, callbacks)
    loader = training_loader(
        train_data,
        batch_size=config.batch_size,
        shorter_side=config.data.shorter_side,
        longer_side=config.data.longer_side,
        flip=config.data.flip,
        seed=config.seed,
        workers=config.data.workers,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        unlabelled=unlabelled,
        unlabelled_batch=config.data.unlabelled_batch or 0,
    )
    count = len(unlabelled) if unlabelled else 0
    if saved:
        _check_unchanged(saved, train_data, len(loader), count)
        loader.sampler.start = saved["step"] % len(loader)  # ty: ignore[missing-attribute]
    engine = Engine(config, train_data, learner, weights, teacher, len(loader), count, saved)
    facts, notes = _found_out(learner, unlabelled, inheritance)
    notes += _long_ramps(config, len(loader) * config.schedule.epochs)
    return _Assembled(folder, engine, trainer, loader, validate, checkpoints, facts, notes, resumed=saved is not None)


def _open_splits(config: DataConfig) -> tuple[DetectionData, DetectionData]:
    train_data, val_data = open_data(config.path, config.train), open_data(config.path, config.val)
    if train_data.classes != val_data.classes:
        raise UserError(
            f"The splits {train_data.split!r} and {val_data.split!r} of {train_data.source} have different classes: "
            f"{list(train_data.classes)} and {list(val_data.classes)}."
        )
    same = (train_data.source, train_data.split) == (val_data.source, val_data.split)
    if same and config.train != config.val:
        raise UserError(
            f"{train_data.source} is one split, and would be trained on and evaluated on. Name two files of a folder: "
            f"data.path={train_data.source.parent} data.train={train_data.source.name} data.val=OTHER_FILE; or, if "
            f"that is what you want, one split twice: data.val={config.train}."
        )
    return train_data, val_data


def _open_unlabelled(config: TrainConfig, *labelled: DetectionData) -> DetectionData | None:
    """The images that are mixed in without labels; those of the labelled splits are left out."""
    data = config.data
    if data.unlabelled is None:
        if data.unlabelled_batch:
            raise UserError(
                f"data.unlabelled_batch={data.unlabelled_batch} without any such images: name them by data.unlabelled."
            )
        return None
    if not isinstance(config, DistillConfig):
        raise UserError(
            f"data.unlabelled={data.unlabelled}: images without labels are for `understudy distill`, where a teacher "
            "speaks of them; in a run without a teacher they teach nothing. Leave data.unlabelled out."
        )
    return open_unlabelled(data.unlabelled, seen=labelled)


def _found_out(
    learner: Learner, unlabelled: DetectionData | None, inheritance: Inheritance | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the run folder and the user are told of what student and teacher share, and of the unlabelled images."""
    facts: dict[str, Any] = {}
    notes: list[str] = []
    if learner.pairing:
        facts["pairing"] = learner.pairing.facts()
        notes += [learner.pairing.note] if learner.pairing.note else []
    if inheritance:
        facts["inherited"] = inheritance.facts()
        notes.append(inheritance.note)
    if unlabelled:
        facts["unlabelled_images"] = len(unlabelled)
        notes.append(f"{len(unlabelled)} unlabelled images of {unlabelled.source} take part in the distillation")
    return facts, tuple(notes)


def _long_ramps(config: TrainConfig, steps: int) -> tuple[str, ...]:
    """What the user is told of weights that grow for longer than the run lasts."""
    ramps = {name: options["ramp_steps"] for name, options in getattr(config, "methods", {}).items()}
    return tuple(
        f"{name}: ramp_steps={ramp} is longer than this run of {steps} steps; the weights never get beyond "
        f"{100 * TermWeight(1.0, ramp).at(steps - 1):.0f} % of their value"
        for name, ramp in ramps.items()
        if ramp > steps
    )


def _build(
    config: TrainConfig, data: DetectionData, *, new: bool
) -> tuple[Learner, Mapping[str, TermWeight], Detector | None, Inheritance | None]:
    """Learner, weights of its terms, teacher, and what the student took from it; a resumed run has its own weights."""
    torch.manual_seed(config.seed)
    student = build_detector(
        **build_options(config, len(data.classes)),
        backbone_weights=config.detector.backbone_weights if new else None,
        frozen_stages=config.detector.frozen_stages,
    )
    if not isinstance(config, DistillConfig):
        return Learner(student), {}, None, None
    teacher = load_checkpoint(config.teacher)
    pairing = pair(student.spec, teacher.detector.spec, data.classes, teacher.classes)
    methods, weights = build_methods(config.methods, pairing.student, pairing.teacher)
    inheritance = inherit(student, teacher.detector, pairing) if config.inherit and new else None
    return Learner(student, methods, pairing), weights, teacher.detector.requires_grad_(False).eval(), inheritance


def _resolved(config: TrainConfig) -> TrainConfig:
    """The config with nothing left open but the methods' options: paths lead to the same place from anywhere."""
    data: dict[str, Any] = {"path": config.data.path.resolve()}
    if config.data.unlabelled is not None:
        data["unlabelled"] = config.data.unlabelled.resolve()
        if config.data.unlabelled_batch is None:
            data["unlabelled_batch"] = config.batch_size
    changes: dict[str, Any] = {"data": config.data.model_copy(update=data)}
    if isinstance(config, DistillConfig):
        changes["teacher"] = config.teacher.resolve()
    weights = config.detector.backbone_weights
    if weights and Path(weights).exists():
        changes["detector"] = config.detector.model_copy(update={"backbone_weights": str(Path(weights).resolve())})
    return config.model_copy(update=changes)


def _written_config(folder: RunFolder, saved: Mapping[str, Any]) -> TrainConfig:
    """The config of a run folder, after checking that no edit makes it another run than the checkpoint's."""
    content = yaml.safe_load(folder.config.read_text())
    config = load_config(DistillConfig if "teacher" in content else TrainConfig, folder.config)
    now, then = _flat(config.model_dump(mode="json")), _flat(saved["config"])
    faults = [
        f"{key}: {then[key]} in the checkpoint, {value} now"
        for key, value in now.items()
        if key not in MAY_CHANGE and key in then and then[key] != value
    ]
    if faults:
        faults.append(f"put it back, or start a new run: understudy ... --config {folder.config} run=...")
        raise UserError.listing(f"{folder.config} was changed since {folder.last} was written:", faults)
    return config


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_unchanged(saved: Mapping[str, Any], data: DetectionData, steps_per_epoch: int, unlabelled: int) -> None:
    """Refuse to go on with other data than before."""
    faults = []
    if list(data.classes) != saved["classes"]:
        faults.append(f"the classes were {saved['classes']} and are {list(data.classes)}")
    steps_before = round(saved["step"] / saved["epoch"])
    if steps_before != steps_per_epoch:
        faults.append(f"an epoch had {steps_before} steps and has {steps_per_epoch}: other images, or other devices")
    if saved.get("unlabelled", 0) != unlabelled:
        faults.append(f"there were {saved.get('unlabelled', 0)} unlabelled images and are {unlabelled}")
    if faults:
        raise UserError.listing(f"The run cannot go on with {data.source}:", faults)


def _fit(run: _Assembled) -> Path:
    if is_first_process():
        for note in run.notes:
            say(escape(note))
    torch.set_flush_denormal(True)  # denormal numbers make training on a CPU crawl
    with _quiet_lightning(), _plain_failures(run.folder), run.checkpoints.listening():
        try:
            run.trainer.fit(run.engine, run.loader, ckpt_path=run.folder.last if run.resumed else None)
        except Interrupted as stop:
            raise KeyboardInterrupt(str(stop)) from None
        run.validate.write_result(run.trainer, run.engine)
    return run.folder.path


def _trainer(config: TrainConfig, folder: RunFolder, callbacks: list[L.Callback]) -> L.Trainer:
    try:
        with _quiet_lightning():
            trainer = L.Trainer(
                accelerator=config.accelerator,
                devices=config.devices,
                num_nodes=config.num_nodes,
                strategy=config.strategy,
                precision=PRECISIONS[config.precision],
                max_epochs=config.schedule.epochs,
                gradient_clip_val=config.optimizer.clip_norm,
                sync_batchnorm=config.detector.norm == "sync",
                callbacks=callbacks,
                plugins=[_AtomicCheckpoints()],
                use_distributed_sampler=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder.path,
            )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(
            f"accelerator={config.accelerator} devices={config.devices} strategy={config.strategy} "
            f"precision={config.precision} cannot be had on this machine: {error}"
        ) from error
    if config.precision == "16" and isinstance(trainer.accelerator, CPUAccelerator):
        raise UserError("precision=16 needs a GPU, and this run is on the CPU: use precision=32, or bf16.")
    on_several_cpus = isinstance(trainer.accelerator, CPUAccelerator) and isinstance(trainer.strategy, ParallelStrategy)
    if config.detector.norm == "sync" and on_several_cpus:
        raise UserError(
            "detector.norm=sync needs GPUs: PyTorch cannot synchronise batch normalisation between processes on CPUs. "
            "Use norm=batch (each process then has the statistics of its own images), eval or frozen."
        )
    return trainer


class _AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint)


@contextlib.contextmanager
def _quiet_lightning() -> Generator[None]:
    """Leave out Lightning's notes and advice: what a user needs to know is said by the run itself."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.utils.data")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _plain_failures(folder: RunFolder) -> Generator[None]:
    """Say a full disk and a failed allocation in plain words, and where the run can go on."""
    try:
        yield
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        if not (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise
        way_on = f"understudy resume {folder.path}" if folder.last.exists() else "delete the run folder and start anew"
        raise RunError(f"The disk is full: {error} Make room, then: {way_on}") from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            "The device has too little memory for this run. Lower batch_size or data.shorter_side, or use "
            "precision=bf16."
        ) from error
