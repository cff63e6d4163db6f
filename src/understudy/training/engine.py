"""One training step, as Lightning's loop calls it, with the checks of every term."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from understudy.balance import Balance, Shares
from understudy.checkpoints import FORMAT, build_options
from understudy.config import DistillConfig, TrainConfig
from understudy.data import Batch, DetectionData, derived_seed, shown_location
from understudy.detectors import Detector
from understudy.errors import MethodError, RunError
from understudy.learner import Learner
from understudy.methods.weighting import TermWeight
from understudy.quantisation import Quantiser
from understudy.training.console import say
from understudy.training.optimizing import parameter_groups
from understudy.training.pseudo_labels import PseudoLabels
from understudy.training.schedule import LearningRate
from understudy.training.teacher_pass import TeacherPass

PATIENCE = 3
"""Consecutive steps with objects in which a distillation term may be exactly zero before the run is stopped."""

PATIENCE_WITH_TRUTH = 50
"""The same for methods that read the ground truth: if the objects are small, none of a batch may have an anchor."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step whose losses were not read yet.

    Attributes:
        number: of the step.
        names: of the losses.
        values: of the losses, on the device.
        objects: whether the batch has objects.
    """

    number: int
    names: tuple[str, ...]
    values: Tensor
    objects: bool


class Engine(L.LightningModule):
    """A training step: the teacher's outputs, the learner's named losses, and their weighted sum.

    Args:
        config: the run's config.
        data: the training split.
        learner: the student and the methods.
        weights: the weight of each distillation term.
        teacher: the frozen teacher, or None.
        steps_per_epoch: optimizer steps of one epoch.
        unlabelled: number of unlabelled images in the run.
        saved: metadata of the checkpoint that the run is resumed from, or None.
        teacher_pass: where the teacher's outputs come from; None without a teacher.
        pseudo_labels: gives unlabelled images objects, or None.

    Attributes:
        losses: losses by name of the last step that was read, ``total`` first; distillation terms unweighted.
        read: the losses of all steps that were read and not yet logged.
        balance: of the losses of a step.
        quantiser: of the student; None without ``quantise``.
        term_weights: the weight of each distillation term in that step.
        lr: the last step's learning rate.
        shares: of the gradient of the last step; None if they were not measured in it, or not finite.
        unproven: distillation terms that were zero in every step so far.
        restored: whether the training has begun, after the checkpoint of a resumed run was restored.
        silence: how many of the last measurements of a term found no gradient, in succession.
    """

    teacher: Detector | None

    def __init__(
        self,
        config: TrainConfig,
        data: DetectionData,
        learner: Learner,
        weights: Mapping[str, TermWeight],
        teacher: Detector | None,
        steps_per_epoch: int,
        unlabelled: int = 0,
        saved: Mapping[str, Any] | None = None,
        teacher_pass: TeacherPass | None = None,
        pseudo_labels: PseudoLabels | None = None,
    ):
        super().__init__()
        self.config, self.data, self.steps_per_epoch = config, data, steps_per_epoch
        self.unlabelled, self.teacher_pass, self.pseudo_labels = unlabelled, teacher_pass, pseudo_labels
        self.learner = learner
        # Not a submodule: absent from parameters, checkpoints and DDP, and never in training mode.
        self.__dict__["teacher"] = teacher
        for network in (learner, teacher):
            if network is not None and suits_channels_last(network):
                # MobileNetV2 in float32 trained up to a third faster on a CPU; not measured on GPUs.
                network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        distilled = isinstance(config, DistillConfig)
        course = {"end": config.balance_end, "until": config.balance_until} if distilled else {}
        self.balance = Balance(learner, weights, steps=self.total_steps, **course)
        begin = max(1, int(config.quantise_from * self.total_steps))  # a step before it has observed the ranges
        self.quantiser = Quantiser(learner.student, begin) if config.quantise else None
        self.seconds_before = saved["seconds"] if saved else 0.0
        self.started = time.monotonic()
        self.losses: dict[str, float] = {}
        self.read: list[dict[str, float]] = []
        self.unread: list[_Step] = []
        self.term_weights: dict[str, float] = {}
        self.lr = math.nan
        self.shares: Shares | None = None
        self.zero_steps = dict.fromkeys(learner.distillation_terms, 0)
        self.unproven = set(learner.distillation_terms)
        self.restored = False
        self.silence = {name: 0 for name in learner.distillation_terms if name not in learner.terms_with_truth}

    @property
    def seconds(self) -> float:
        """Duration of the run in seconds, including the time before an interruption."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.schedule.epochs

    def setup(self, stage: str) -> None:
        """Move the teacher to the device; Lightning moves only submodules. Compile what the config says."""
        if self.teacher is not None:
            self.teacher.to(self.trainer.strategy.root_device)
        for detector in (self.learner.student, self.teacher) if self.config.compile else ():
            if isinstance(detector, Detector):
                detector.compile_layers()

    def on_train_start(self) -> None:
        """Note that a checkpoint, if there is one, was restored."""
        self.restored = True

    def configure_optimizers(self) -> Any:
        """Return the optimizer (SGD or AdamW), and the learning rate as a function of the step.

        Lightning clips the norm over all parameters of the optimizer: those of the student and of the methods.
        """
        options = self.config.optimizer
        lr = options.lr * options.lr_scale(self.config.batch_size * self.trainer.world_size)
        groups = parameter_groups(self.learner, options, lr)
        if options.name == "sgd":
            optimizer = torch.optim.SGD(groups, lr, momentum=options.momentum, weight_decay=options.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, lr, weight_decay=options.weight_decay)
        factor = LearningRate(self.config.schedule, self.steps_per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor.at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to the device."""
        if self.teacher_pass:
            self.teacher_pass.prepare(batch)
        return batch.to(device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random generator from the run's seed, the step and the process, so that a resumed run repeats it."""
        torch.manual_seed(derived_seed(self.config.seed, self.global_step, self.global_rank))
        if self.quantiser and self.global_step == self.quantiser.start and self.trainer.is_global_zero:
            layers = len(self.quantiser.layers)
            say(f"from step {self.global_step}, the student computes with INT8 weights and inputs in {layers} layers")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted loss of a batch, after checking every term.

        On a GPU the values of some steps are read together, so that it need not wait in every step.

        Raises:
            RunError: a loss is not finite, a distillation term has no effect, or a method raises an error.
        """
        teacher_outputs = self.teacher_pass.outputs(batch, self.global_step) if self.teacher_pass else None
        if self.pseudo_labels and teacher_outputs:
            batch = self.pseudo_labels.added_to(batch, teacher_outputs)
        try:
            terms = self.learner(
                batch.images, batch.targets, teacher_outputs, batch.image_sizes, batch.labelled, teacher=self.teacher
            )
        except MethodError as error:
            raise MethodError(f"Step {self.global_step}: {error}") from error.__cause__
        before, measured = self.balance.reading, self.balance.is_due(self.balance.step)
        total = self.balance(terms)
        self.shares = self.balance.reading if self.balance.reading is not before else None
        values = torch.stack([total, *terms.values()]).detach()
        objects = any(len(target["labels"]) for target in batch.targets)
        self.unread.append(_Step(self.global_step, ("total", *terms), values, objects))
        self.term_weights = self.balance.last
        self.lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        if measured or self._is_read():  # a measurement without finite gradients gives no shares
            self.read_losses()
            self._check_reach(terms)
        if self.shares:
            self._count_silence(terms, self.shares.norms)
        if self.quantiser:
            self.quantiser.step()
        return total

    def _is_read(self) -> bool:
        """Return whether the losses are read in this step: always on a CPU, else in the first step and for each row."""
        done = self.global_step + 1
        due = done % self.config.log_every == 0 or done % self.steps_per_epoch == 0
        return due or not self.losses or reading_is_free(self.unread[-1].values)

    def read_losses(self) -> None:
        """Read and check the losses since the last reading; this waits for the device.

        Raises:
            RunError: a loss is not finite, or a distillation term was zero for too long.
        """
        steps, self.unread = self.unread, []
        values = iter(torch.cat([step.values for step in steps]).tolist() if steps else ())
        for step in steps:
            self.losses = {name: next(values) for name in step.names}
            self._check_finite(step.number)
            self._check_zero(step.objects)
            self.read.append(self.losses)

    def _check_finite(self, step: int) -> None:
        broken = [f"{name} is {value}" for name, value in self.losses.items() if not math.isfinite(value)]
        if broken:
            raise RunError(
                f"Step {step}: {', '.join(broken)}. Possible remedies: lower optimizer.lr or "
                "optimizer.clip_norm, raise schedule.warmup_steps, use precision=32, or run `understudy check "
                f"{shown_location(self.config.data.path)}` to find invalid boxes. Steps after the last checkpoint were "
                "not saved."
            )

    def _check_zero(self, objects: bool) -> None:
        for name in self.zero_steps:
            self.zero_steps[name] = self.zero_steps[name] + 1 if self.losses[name] == 0 and objects else 0
            patience = PATIENCE_WITH_TRUTH if name in self.learner.terms_with_truth else PATIENCE
            if self.zero_steps[name] == patience:
                raise RunError(
                    f"The distillation term {name} was exactly zero in {patience} steps. It has no effect. Possible "
                    "causes: the teacher detects nothing on this data (run `understudy evaluate TEACHER DATA`), a "
                    "threshold of the method excludes everything, the objects are too small for the student's anchors "
                    "(rank_mimicking needs two anchors per object), or student and teacher are the same network."
                )

    def _check_reach(self, terms: Mapping[str, Tensor]) -> None:
        """Check in the first step where a term is not zero that its gradient reaches the student."""
        for name in sorted(name for name in self.unproven if self.losses[name] != 0):
            if not any(bool(gradient.any()) for gradient in self._gradients(terms[name])):
                raise RunError(
                    f"The distillation term {name} has no gradient with respect to any weight of the student. It "
                    "has no effect. Possible causes: the method detaches the student's outputs, or reads only the "
                    "teacher's."
                )
            self.unproven.remove(name)

    def _count_silence(self, terms: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        """Count how often the gradient of a term was zero in succession.

        Terms that read the ground truth may have none in a batch.
        """
        for name in self.silence:
            if self.losses[name] != 0:
                reached = norms[name] or any(bool(gradient.any()) for gradient in self._gradients(terms[name]))
                self.silence[name] = 0 if reached else self.silence[name] + 1

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        """Return the gradients of a loss with respect to the student's weights that it depends on."""
        if not loss.requires_grad:
            return []
        parameters = [parameter for parameter in self.learner.student.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    def metadata(self, **more: Any) -> dict[str, Any]:
        """Return the metadata of a checkpoint as plain values, with ``more`` added."""
        if self.quantiser and self.quantiser.active:
            more["quantisation"] = self.quantiser.ranges
        return {
            "format": FORMAT,
            "build": build_options(self.config, len(self.data.classes)),
            "classes": list(self.data.classes),
            "category_ids": list(self.data.category_ids),
            "config": self.config.model_dump(mode="json"),
            "epoch": self.global_step / self.steps_per_epoch,
            "step": self.global_step,
            "seconds": self.seconds,
            "unlabelled": self.unlabelled,
            **more,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata, so that the weights can be used without the run folder."""
        self.read_losses()  # weights after a loss of nan are not saved
        checkpoint["understudy"] = self.metadata()
        checkpoint["balance"] = self.balance.state_dict()
        if self.quantiser:
            checkpoint["quantiser"] = self.quantiser.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the weights that follow from shares, and the ranges of the layers' inputs."""
        if state := checkpoint.get("balance"):  # a run of an earlier version has fixed weights alone
            self.balance.load_state_dict(state)
        if self.quantiser:
            self.quantiser.load_state_dict(checkpoint["quantiser"])


def reading_is_free(values: Tensor) -> bool:
    """Return whether values can be read without waiting for a device."""
    return values.device.type == "cpu"


def suits_channels_last(network: nn.Module) -> bool:
    """Return whether a network may be trained in this memory format, or PyTorch's CPU library (oneDNN) may crash.

    In the backward pass, it writes beyond its memory at a 1x1 convolution of stride 2 from fewer than 16 channels, as
    in a ResNet of an eighth of its width (torch 2.13).
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return not any(
        each.kernel_size == (1, 1) and each.stride == (2, 2) and each.in_channels < 16 for each in convolutions
    )
