"""Training runs: a teacher or a plain student, a distilled student, and going on with either.

One step is: batch -> teacher's record (no gradient) -> learner's named losses -> weighted sum -> backward, clip, step.
Lightning runs the loop; order of images, augmentation and dropout are functions of (seed, epoch, image, step, rank), so
that an interrupted and resumed run equals an uninterrupted one to the bit.
"""

import contextlib
import errno
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from understudy.callbacks import Interrupted, KeepCheckpoints, LogLosses, ShowProgress, Validate
from understudy.checkpoint import FORMAT, build_options, load_checkpoint, read_checkpoint, write_checkpoint
from understudy.config import DistillConfig, TrainConfig, dump_config, load_config
from understudy.data import Batch, DetectionData, derived_seed, open_data, training_loader
from understudy.detectors import Detector, build_detector
from understudy.errors import RunError, UserError
from understudy.learner import Learner
from understudy.methods import build_methods
from understudy.runs import RunFolder, drop_rows_after, rank_of_this_process
from understudy.weighting import TermWeight, weighted_sum

SHARE_EVERY = 50
"""Steps between two measurements of the distillation's share of the gradient; one costs two passes backward."""

PATIENCE = 3
"""Steps with objects in which a distillation term may be exactly zero before the run is stopped."""

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def train(config: TrainConfig) -> Path:
    """Train a detector, a teacher or a plain student, and return its run folder.

    Raises:
        UserError: the config does not fit the data, the detector or the machine; nothing was written.
        RunError: the run cannot go on; its folder holds everything up to the last checkpoint.
    """
    return _start(config)


def distill(config: DistillConfig) -> Path:
    """Train a student with a teacher and distillation methods, and return its run folder; raises as :func:`train`."""
    return _start(config)


def resume(run: Path) -> Path:
    """Go on with an interrupted run exactly where its last checkpoint was written.

    Raises:
        UserError: it is no run, it is finished, it is running, or it never saved a checkpoint.
        RunError: as :func:`train`.
    """
    folder = RunFolder.open(Path(run))
    if folder.result.exists():
        raise UserError(f"{run} is finished; its evaluation is in {folder.result}.")
    if not folder.last.exists():
        raise UserError(f"{run} was stopped before it saved a checkpoint; delete it and start it anew.")
    written = load_config(_config_class(folder.config), folder.config)
    meta = read_checkpoint(folder.last)["understudy"]
    parts = _assemble(written)
    if list(parts.train_data.classes) != meta["classes"]:
        raise UserError(f"{run} was trained on the classes {meta['classes']}; the data now has {parts.train_data.classes}.")
    with folder.locked():
        for file in (folder.losses, folder.metrics):
            drop_rows_after(file, meta["step"])
        return _fit(written, folder, parts, meta)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a config names, opened and found to fit together."""

    train_data: DetectionData
    val_data: DetectionData
    learner: Learner
    weights: Mapping[str, TermWeight]
    teacher: Detector | None


def _start(config: TrainConfig) -> Path:
    parts = _assemble(config)
    folder = RunFolder(config.run)
    if rank_of_this_process() == 0:
        folder = RunFolder.create(config.run, dump_config(config))
    with folder.locked():
        return _fit(config, folder, parts, None)


def _assemble(config: TrainConfig) -> _Parts:
    """Open data, student, teacher and methods; every misfit is found here, before anything is written."""
    train_data = open_data(config.data.path, config.data.train)
    val_data = open_data(config.data.path, config.data.val)
    _check_splits(train_data, val_data)
    torch.manual_seed(config.seed)
    options = build_options(config, len(train_data.classes))
    student = build_detector(
        **options, backbone_weights=config.detector.backbone_weights, frozen_stages=config.detector.frozen_stages
    )
    if not isinstance(config, DistillConfig):
        return _Parts(train_data, val_data, Learner(student), {}, None)
    teacher = load_checkpoint(config.teacher)
    _check_classes(teacher.classes, train_data, config.teacher)
    methods, weights = build_methods(config.methods, student.spec, teacher.detector.spec)
    frozen = teacher.detector.requires_grad_(False).eval()
    return _Parts(train_data, val_data, Learner(student, methods), weights, frozen)


def _check_splits(train_data: DetectionData, val_data: DetectionData) -> None:
    if train_data.classes != val_data.classes:
        raise UserError(
            f"The splits {train_data.split!r} and {val_data.split!r} of {train_data.source} have different classes: "
            f"{list(train_data.classes)} and {list(val_data.classes)}."
        )
    for data in (train_data, val_data):
        if not any(len(record.labels) for record in data.records):
            raise UserError(f"The split {data.split!r} of {data.source} has {len(data)} images and not one object.")


def _check_classes(teacher: Sequence[str], data: DetectionData, path: Path) -> None:
    if tuple(teacher) == tuple(data.classes):
        return
    faults = [f"only the teacher has {name!r}" for name in teacher if name not in data.classes]
    faults += [f"only the data set has {name!r}" for name in data.classes if name not in teacher]
    if not faults:
        faults = [f"the order differs: teacher {list(teacher)}, data set {list(data.classes)}"]
    faults.append("train a teacher on this data set: understudy train data=... detector=... run=...")
    raise UserError.listing(f"The teacher {path} and the data set {data.source} have different classes:", faults)


def _config_class(file: Path) -> type[TrainConfig]:
    return DistillConfig if "\nteacher:" in f"\n{file.read_text()}" else TrainConfig


def _fit(config: TrainConfig, folder: RunFolder, parts: _Parts, resumed: Mapping[str, Any] | None) -> Path:
    torch.set_flush_denormal(True)  # denormal numbers make training on a CPU crawl
    engine = Engine(config, parts, resumed)
    validate = Validate(folder, parts.val_data, config)
    with _quiet_lightning(), _plain_failures(folder):
        callbacks = [LogLosses(folder, config.log_every), validate, KeepCheckpoints(folder), ShowProgress()]
        trainer = _trainer(config, folder, callbacks)
        try:
            trainer.fit(engine, ckpt_path=folder.last if resumed else None)
        except Interrupted as stop:  # travels through Lightning as an ordinary exception, which it leaves alone
            raise KeyboardInterrupt(str(stop)) from None
    validate.write_result(trainer, engine)
    return folder.path


def _trainer(config: TrainConfig, folder: RunFolder, callbacks: list[L.Callback]) -> L.Trainer:
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=PRECISIONS[config.precision],
            max_epochs=config.schedule.epochs,
            gradient_clip_val=config.optimizer.clip_norm,
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


class _AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's notes and advice: what a user needs to know is said by the run itself."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torch.utils.data")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@contextlib.contextmanager
def _plain_failures(folder: RunFolder) -> Iterator[None]:
    """Say a full disk and a failed allocation in plain words, and where the run can go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(f"The disk is full ({error}). Make room, then: understudy resume {folder.path}") from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            "The device has too little memory for this run. Lower batch_size or data.shorter_side, or use precision=bf16."
        ) from error


class Engine(L.LightningModule):
    """One training step for Lightning; the teacher stays outside the module tree.

    Args:
        config: the run's config.
        parts: student and methods, weights, teacher and data.
        resumed: the metadata of the checkpoint to go on from, or None.
    """

    def __init__(self, config: TrainConfig, parts: _Parts, resumed: Mapping[str, Any] | None = None):
        super().__init__()
        self.learner = parts.learner
        self.config, self.weights, self.train_data = config, parts.weights, parts.train_data
        # Not a submodule: absent from parameters, checkpoints and DDP, and never in training mode.
        self.__dict__["teacher"] = parts.teacher
        for network in (self.learner, self.teacher):
            if network is not None:
                network.to(memory_format=torch.channels_last)  # a third faster on CPUs, no slower on GPUs
        self.resumed_step = resumed["step"] if resumed else 0
        self.seconds_before = resumed["seconds"] if resumed else 0.0
        self.started = time.monotonic()
        self.losses: dict[str, float] = {}
        self.share: float | None = None
        self.zero_steps = dict.fromkeys(self.learner.distillation_terms, 0)

    @property
    def seconds(self) -> float:
        """Seconds of this run, those before an interruption included."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return len(self.train_data) // (self.config.batch_size * self.trainer.world_size)

    def setup(self, stage: str) -> None:
        """Move the teacher, which Lightning does not know of, to the device."""
        if self.teacher is not None:
            self.teacher.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> DataLoader:
        """Training batches, from the step at which an interrupted epoch stopped."""
        data = self.config.data
        loader = training_loader(
            self.train_data,
            batch_size=self.config.batch_size,
            shorter_side=data.shorter_side,
            longer_side=data.longer_side,
            flip=data.flip,
            seed=self.config.seed,
            workers=data.workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        loader.sampler.start = self.resumed_step % self.steps_per_epoch
        return loader

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD or AdamW, and a learning rate that is a function of the step."""
        options = self.config.optimizer
        lr = options.lr
        if options.scale_lr:
            lr *= self.config.batch_size * self.trainer.world_size / options.reference_batch
        parameters = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
        if options.name == "sgd":
            optimizer = torch.optim.SGD(parameters, lr, momentum=options.momentum, weight_decay=options.weight_decay)
        else:
            optimizer = torch.optim.AdamW(parameters, lr, weight_decay=options.weight_decay)
        factor = LearningRate(self.config, self.steps_per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor.at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch."""
        return batch.to(device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make whatever the step draws at random a function of the seed, the step and the process."""
        torch.manual_seed(derived_seed(self.config.seed, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the weighted loss of a batch, after checking that every term is alive."""
        teacher_outputs = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_outputs = self.teacher(batch.images, batch.image_sizes)
        terms = self.learner(batch.images, batch.targets, teacher_outputs, batch.image_sizes)
        total = weighted_sum(terms, self.weights, self.global_step)
        self.losses = dict(zip(["total", *terms], torch.stack([total, *terms.values()]).tolist(), strict=True))
        self._check_terms(terms, any(len(target["labels"]) for target in batch.targets))
        self.share = None
        if self.learner.distillation_terms and self.global_step % SHARE_EVERY == 0:
            self.share = self._distillation_share(terms)
        return total

    def _check_terms(self, terms: Mapping[str, Tensor], objects: bool) -> None:
        broken = [f"{name} is {value}" for name, value in self.losses.items() if not math.isfinite(value)]
        if broken:
            raise RunError(
                f"Step {self.global_step}: {', '.join(broken)}. Lower optimizer.lr, set optimizer.clip_norm (35 is the "
                "field's usual), lengthen schedule.warmup_steps, or use precision=32; `understudy check` finds boxes "
                "that cannot be learned. Nothing after the last checkpoint was saved."
            )
        for name in self.learner.distillation_terms:
            self.zero_steps[name] = self.zero_steps[name] + 1 if self.losses[name] == 0 and objects else 0
            if self.zero_steps[name] == PATIENCE:
                raise RunError(
                    f"The distillation term {name} was exactly zero in {PATIENCE} steps: it teaches nothing. Either the "
                    "teacher sees nothing it could pass on (evaluate it on this data), a threshold of the method leaves "
                    "nothing over, or student and teacher are the same network."
                )
        if self.global_step == self.resumed_step:
            self._check_reach(terms)

    def _check_reach(self, terms: Mapping[str, Tensor]) -> None:
        parameters = [parameter for parameter in self.learner.student.parameters() if parameter.requires_grad]
        for name in self.learner.distillation_terms:
            term = terms[name]
            reached = term.requires_grad and any(
                gradient is not None and bool(gradient.any())
                for gradient in torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            )
            if not reached and self.losses[name] != 0:
                raise RunError(
                    f"The distillation term {name} has no gradient to any weight of the student: it would be logged "
                    "and change nothing. The method detaches the student's record, or reads only the teacher's."
                )

    def _distillation_share(self, terms: Mapping[str, Tensor]) -> float:
        """Norm of the distillation's gradient over that plus the task's, over the student's weights, in 0..1."""
        parameters = [parameter for parameter in self.learner.student.parameters() if parameter.requires_grad]

        def norm(chosen: Mapping[str, Tensor]) -> float:
            loss = weighted_sum(chosen, self.weights, self.global_step)
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            return math.sqrt(sum(float(gradient.float().square().sum()) for gradient in gradients if gradient is not None))

        ours = norm({name: term for name, term in terms.items() if name in self.weights})
        task = norm({name: term for name, term in terms.items() if name not in self.weights})
        return ours / (ours + task) if ours + task else 0.0

    def metadata(self, **more: Any) -> dict[str, Any]:
        """What travels with the weights, as plain values."""
        return {
            "format": FORMAT,
            "build": build_options(self.config, len(self.train_data.classes)),
            "classes": list(self.train_data.classes),
            "category_ids": list(self.train_data.category_ids),
            "config": self.config.model_dump(mode="json"),
            "epoch": self.global_step / self.steps_per_epoch,
            "step": self.global_step,
            "seconds": self.seconds,
            **more,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the weights without the config at hand."""
        checkpoint["understudy"] = self.metadata()


@dataclass(frozen=True, slots=True)
class LearningRate:
    """The learning rate's factor as a function of the step: a linear warm-up, then the schedule.

    Attributes:
        config: the run's config.
        steps_per_epoch: optimizer steps of an epoch.
    """

    config: TrainConfig
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """The factor at a step, counted from 0."""
        schedule = self.config.schedule
        total = schedule.epochs * self.steps_per_epoch
        warmup = min(schedule.warmup_steps, total // 10)
        if step < warmup:
            return schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup
        if schedule.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
        # 1x is 12 epochs with drops after 8 and 11, 2x is 24 with drops after 16 and 22: the same proportions.
        epoch = step / self.steps_per_epoch
        return 0.1 ** sum(epoch >= round(schedule.epochs * part) for part in (2 / 3, 11 / 12))
