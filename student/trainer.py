"""The one loop that trains a student on cached targets; there is no teacher in it."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.errors import FeatureCacheError, UsageError
from student.checkpoint import load_checkpoint, save_checkpoint
from student.data import TrainingData
from student.objectives.base import Batch
from student.objectives.weighted import WeightedSum
from student.optim import clip_gradients, learning_rate, make_optimizer, trainable

__all__ = ["Step", "TrainSettings", "Validated", "evaluate_objective", "train"]

_SAVE_SECONDS = 300
"""An epoch of a large data set takes hours; an interruption should not cost one."""

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a student is trained."""

    steps: int
    """Optimizer steps in all."""
    batch_size: int = 64
    """Samples per optimizer step."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then cosine to zero."""
    weight_decay: float = 0.05
    """Of weight matrices only; norms and biases have none."""
    warmup: float = 0.05
    """Part of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    precision: str = "float32"
    """"float32", or autocast to "bfloat16" or "float16"."""
    seed: int = 0
    """Of weights, order, dropout and negatives."""
    interval: int = 0
    """Steps between validations, each followed by a checkpoint; 0 for every epoch, or 100 steps if that is rarer."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(f"training needs at least one step of one sample, not {self.steps} of {self.batch_size}")
        if self.precision not in _PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", hint=f"known: {', '.join(_PRECISIONS)}")
        positive = 0 < self.learning_rate < math.inf
        if not (positive and self.weight_decay >= 0 and 0 <= self.warmup <= 1 and self.clip >= 0):
            raise UsageError("learning rate must be positive, decay and clip not negative, warm-up between 0 and 1")


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    step: int
    """How many were made, this one included."""
    epoch: int
    learning_rate: float
    losses: Mapping[str, Tensor]
    """The total and each objective's unweighted value; scalars that stay on the device until somebody reads them."""


@dataclass(frozen=True, slots=True)
class Validated:
    """The objective on the validation part."""

    step: int
    epoch: int
    losses: Mapping[str, float]


def train(
    student: nn.Module,
    objective: WeightedSum,
    data: TrainingData,
    settings: TrainSettings,
    *,
    validation: TrainingData | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> Iterator[Step | Validated]:
    """Train in place, yielding every step, and a validation at every interval and at the end.

    `student` maps a batch of inputs to outputs by name, as a `Student` does.
    With `checkpoint`, everything is saved there after each validation and every five minutes; with `resume` the run
    goes on from it, with the same batches and the same random numbers as one that was never interrupted.
    Raises FeatureCacheError when the loss is no longer finite.
    """
    device = data.device
    modules: dict[str, nn.Module] = {"student": student.to(device), "objective": objective.to(device)}
    optimizer = make_optimizer(modules.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    update = _Update(student, objective, optimizer, scaler, trainable(modules.values()), settings)
    done = 0
    if resume and checkpoint is not None:
        done = load_checkpoint(checkpoint, modules, optimizer, scaler=scaler, device=device)
    per_epoch = data.steps_per_epoch(settings.batch_size)
    interval = settings.interval or max(per_epoch, 100)
    batches = data.shuffled(settings.batch_size, seed=settings.seed, start=done, stop=settings.steps)
    saved = time.monotonic()
    student.train()
    objective.train()
    for step, batch in enumerate(batches, done + 1):
        rate = learning_rate(
            step - 1,
            steps=settings.steps,
            warmup=round(settings.warmup * settings.steps),
            peak=settings.learning_rate,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = update(batch)
        yield Step(step, (step - 1) // per_epoch, rate, losses)
        is_round = step % interval == 0 or step == settings.steps
        if is_round or time.monotonic() - saved > _SAVE_SECONDS:
            _check_finite(losses, modules, step)
            if is_round and validation is not None and len(validation):
                yield Validated(
                    step, (step - 1) // per_epoch, evaluate_objective(student, objective, validation, settings)
                )
                student.train()
                objective.train()
            if checkpoint is not None:
                save_checkpoint(checkpoint, modules, optimizer, step=step, scaler=scaler, device=device)
                saved = time.monotonic()
    student.eval()


def evaluate_objective(
    student: nn.Module, objective: WeightedSum, data: TrainingData, settings: TrainSettings
) -> dict[str, float]:
    """The mean of the total and of each objective over all rows, without gradients or dropout."""
    student.eval()
    objective.eval()
    sums: dict[str, float] = {}
    rows = 0
    with torch.inference_mode():
        for batch in data.in_order(settings.batch_size):
            with _precision(settings, data.device):
                outputs = student(batch.inputs)
            total, parts = objective(outputs, batch)
            rows += len(batch.rows)
            for name, value in {"loss": total, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch.rows)
    return {name: value / rows for name, value in sums.items()}


@dataclass(frozen=True, slots=True)
class _Update:
    """One optimizer step on a batch; returns its losses."""

    student: nn.Module
    objective: WeightedSum
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    weights: list[nn.Parameter]
    """All that is trained: finding them anew costs as much as a small layer."""
    settings: TrainSettings

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with _precision(self.settings, batch.rows.device):
            outputs = self.student(batch.inputs)
        total, parts = self.objective(outputs, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        if self.settings.clip:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.weights, max_norm=self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": total.detach(), **parts}


def _precision(settings: TrainSettings, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    dtype = _PRECISIONS[settings.precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def _check_finite(losses: Mapping[str, Tensor], modules: Mapping[str, nn.Module], step: int) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(float(value))]
    # a finite loss may have had a gradient that was not
    weights = (parameter for module in modules.values() for parameter in module.parameters())
    bad += [] if all(bool(parameter.isfinite().all()) for parameter in weights) else ["weights"]
    if bad:
        hint = "lower --lr, or train in float32; the last checkpoint is from before this"
        raise FeatureCacheError(f"the loss is not finite at step {step:,} ({', '.join(bad)})", hint=hint)
