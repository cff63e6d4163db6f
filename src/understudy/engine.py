"""One step of training, as Lightning's loop calls it, and the learning rate."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from understudy.checkpoints import FORMAT, build_options
from understudy.config import TrainConfig
from understudy.data import Batch, DetectionData, derived_seed
from understudy.detectors import Detector
from understudy.errors import RunError
from understudy.learner import Learner
from understudy.weighting import TermWeight, weighted_sum

SHARE_EVERY = 50
"""Steps between two measurements of the distillation's share of the gradient; one costs two passes backward."""

PATIENCE = 3
"""Steps with objects in which a distillation term may be exactly zero before the run is stopped."""

PATIENCE_WITH_TRUTH = 50
"""The same of methods that read the ground truth: with small objects a batch may leave them nothing to compare."""


class Engine(L.LightningModule):
    """One training step: batch, teacher's record, learner's named losses, weighted sum; the rest is Lightning's.

    Args:
        config: the run's config.
        data: the training split.
        learner: what is trained.
        weights: weight of each distillation term.
        teacher: frozen, or None.
        steps_per_epoch: optimizer steps of one epoch.
        unlabelled: number of unlabelled images that are mixed in.
        saved: the metadata of the checkpoint to go on from, or None.

    Attributes:
        losses: the last step's losses by name, ``total`` first; the distillation's terms raw.
        term_weights: what each of these was multiplied by in that step.
        lr: the last step's learning rate.
        share: the distillation's share of the last step's gradient, or None where it was not measured.
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
    ):
        super().__init__()
        self.config, self.data, self.weights, self.steps_per_epoch = config, data, weights, steps_per_epoch
        self.unlabelled = unlabelled
        self.learner = learner
        # Not a submodule: absent from parameters, checkpoints and DDP, and never in training mode.
        self.__dict__["teacher"] = teacher
        for network in (learner, teacher):
            if network is not None:
                # MobileNetV2 in float32 trained up to a third faster on a CPU; not measured on GPUs.
                network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        self.seconds_before = saved["seconds"] if saved else 0.0
        self.started = time.monotonic()
        self.losses: dict[str, float] = {}
        self.term_weights: dict[str, float] = {}
        self.lr = math.nan
        self.share: float | None = None
        self.zero_steps = dict.fromkeys(learner.distillation_terms, 0)
        self.unproven = set(learner.distillation_terms)

    @property
    def seconds(self) -> float:
        """Seconds of this run, those before an interruption included."""
        return self.seconds_before + time.monotonic() - self.started

    def setup(self, stage: str) -> None:
        """Move the teacher, which Lightning does not know of, to the device."""
        if self.teacher is not None:
            self.teacher.to(self.trainer.strategy.root_device)

    def configure_optimizers(self) -> Any:
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
            with torch.no_grad(), self.teacher.keeping(*self.learner.keeps):
                teacher_outputs = self.teacher(batch.images, batch.image_sizes)
        terms = self.learner(
            batch.images, batch.targets, teacher_outputs, batch.image_sizes, batch.labelled, teacher=self.teacher
        )
        total = weighted_sum(terms, self.weights, self.global_step)
        self.losses = dict(zip(["total", *terms], torch.stack([total, *terms.values()]).tolist(), strict=True))
        self.term_weights = {name: weight.at(self.global_step) for name, weight in self.weights.items()}
        self.lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._check_finite()
        self._check_zero(any(len(target["labels"]) for target in batch.targets))
        self._check_reach(terms)
        measured = bool(self.learner.distillation_terms) and self.global_step % SHARE_EVERY == 0
        self.share = self._distillation_share(terms) if measured else None
        return total

    def _check_finite(self) -> None:
        broken = [f"{name} is {value}" for name, value in self.losses.items() if not math.isfinite(value)]
        if broken:
            raise RunError(
                f"Step {self.global_step}: {', '.join(broken)}. Lower optimizer.lr, set optimizer.clip_norm (35 is the "
                "field's usual), lengthen schedule.warmup_steps, or use precision=32; `understudy check` finds boxes "
                "that cannot be learned. Nothing after the last checkpoint was saved."
            )

    def _check_zero(self, objects: bool) -> None:
        for name in self.zero_steps:
            self.zero_steps[name] = self.zero_steps[name] + 1 if self.losses[name] == 0 and objects else 0
            patience = PATIENCE_WITH_TRUTH if name in self.learner.terms_with_truth else PATIENCE
            if self.zero_steps[name] == patience:
                raise RunError(
                    f"The distillation term {name} was exactly zero in {patience} steps: it teaches nothing. Either "
                    "the teacher sees nothing it could pass on (evaluate it on this data), a threshold of the method "
                    "leaves nothing over, the objects are so small that the student has no anchors for them (of each "
                    "object rank_mimicking needs two), or student and teacher are the same network."
                )

    def _check_reach(self, terms: Mapping[str, Tensor]) -> None:
        """Make sure, at the first step where a term says something, that it says it to the student."""
        for name in sorted(name for name in self.unproven if self.losses[name] != 0):
            if not any(bool(gradient.any()) for gradient in self._gradients(terms[name])):
                raise RunError(
                    f"The distillation term {name} has no gradient to any weight of the student: it would be logged "
                    "and change nothing. The method detaches the student's record, or reads only the teacher's."
                )
            self.unproven.remove(name)

    def _distillation_share(self, terms: Mapping[str, Tensor]) -> float:
        """Norm of the distillation's gradient over that plus the task's, over the student's weights, in 0..1."""

        def norm(chosen: Mapping[str, Tensor]) -> float:
            gradients = self._gradients(weighted_sum(chosen, self.weights, self.global_step))
            return math.sqrt(sum(float(gradient.float().square().sum()) for gradient in gradients))

        ours = norm({name: term for name, term in terms.items() if name in self.weights})
        task = norm({name: term for name, term in terms.items() if name not in self.weights})
        return ours / (ours + task) if ours + task else 0.0

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        """The gradients of a loss at those of the student's weights that it depends on."""
        if not loss.requires_grad:
            return []
        parameters = [parameter for parameter in self.learner.student.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    def metadata(self, **more: Any) -> dict[str, Any]:
        """What travels with the weights, as plain values."""
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
