"""One student in training: its objective, its optimizer, the average of its weights, and what it has come to."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from featurecache.errors import UsageError
from student.checkpoint import load_checkpoint, load_weights, read_facts, save_checkpoint, save_tensors
from student.finite import Watch
from student.objectives.base import Batch
from student.objectives.weighted import WeightedSum
from student.optim import clip_gradients, layer_scales, learning_rate, make_optimizer, set_learning_rate, trainable
from student.randomness import Randomness
from student.settings import TrainSettings

__all__ = ["Trainee"]


class Trainee:
    """A student that learns batch by batch; several of them can be shown the same batches."""

    def __init__(
        self,
        student: nn.Module,
        objective: WeightedSum,
        settings: TrainSettings,
        *,
        device: torch.device,
        checkpoint: Path | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        """`student` maps a batch of inputs to outputs by name, as a `Student` does; it is trained in place.

        `checkpoint` is where everything is saved. With `randomness` the student draws from random numbers of its own,
        so that it learns beside others what it would learn alone.
        Raises UsageError for a patience without a checkpoint, and a layer decay that the student has no depths for.
        """
        if settings.patience and checkpoint is None:
            raise UsageError("the best weights must be kept somewhere", hint="give a checkpoint, or no patience")
        self.settings = settings
        self.device = device
        self.student, self.objective = student.to(device), objective.to(device)
        if settings.channels_last:
            student.to(memory_format=torch.channels_last)
        self._averaged = ModelEmaV3(student, settings.ema, use_warmup=True) if settings.ema else None
        self._optimizer = make_optimizer(
            [student, objective],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            scales=layer_scales(student, settings.layer_decay) if settings.layer_decay < 1 else {},
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        self._weights = trainable([student, objective])  # finding them for each step costs as much as a small layer
        self._watch = Watch(self._weights)
        self._compiled: Any = torch.compile(student) if settings.compile else None
        self._checkpoint = checkpoint
        self._randomness = randomness or contextlib.nullcontext()
        self._losses: dict[str, Tensor] = {}
        self._rows: list[Tensor] = []
        self.done = 0
        """Optimizer steps made."""
        self.rate = 0.0
        """Learning rate of the last one."""
        self.best: float | None = None
        """The smallest validation loss yet."""
        self._worse = 0
        self.warning = ""
        """What could not be done as it was asked for; empty where everything could."""

    @property
    def judged(self) -> nn.Module:
        """What is validated and kept: the average of the weights where there is one, else the student."""
        return self.student if self._averaged is None else self._averaged.module

    @property
    def has_stopped(self) -> bool:
        """Whether it has had all its steps, or validation has not become better for too long."""
        patience = self.settings.patience
        return self.done >= self.settings.steps or (patience > 0 and self._worse >= patience)

    def resume(self) -> None:
        """Go on from the checkpoint, with the same random numbers. Raises CorruptCacheError."""
        assert self._checkpoint is not None
        with self._randomness:
            self.done = load_checkpoint(
                self._checkpoint, self._modules(), self._optimizer, scaler=self._scaler, device=self.device
            )
        facts = read_facts(self._checkpoint)
        self.best, self._worse = facts["best"], facts["worse"]

    def learn(self, batch: Batch, *, ends_step: bool = True) -> dict[str, Tensor]:
        """Add a batch's gradients and, with `ends_step`, make an optimizer step.

        Returns the total and each objective's own value, sums over the step so far of their parts: at its end the means
        over its batches. They are scalars that stay on the device.
        """
        if not self._rows:
            self._optimizer.zero_grad(set_to_none=True)
        with self._randomness:
            losses = self._gradients(batch)
        share = 1 / self.settings.accumulate
        found = {name: share * value + self._losses.get(name, 0) for name, value in losses.items()}
        self._losses = {} if ends_step else found
        self._rows.append(batch.rows)
        if ends_step:
            self._step()
            self._watch.add(self.done, found, self._rows)
            self._rows = []
        return found

    def check_finite(self, keys_of: Callable[[Tensor], Sequence[str]], *, weights: bool = False) -> None:
        """`Watch.check` of the steps since the last one."""
        self._watch.check(keys_of, weights=weights)

    def note_validation(self, loss: float) -> None:
        """Count validations without a smaller loss; with a patience, keep the weights of the smallest one."""
        if self.best is not None and loss >= self.best:
            self._worse += 1
            return
        self.best, self._worse = loss, 0
        if self.settings.patience:
            save_tensors(self._best_weights, self.judged.state_dict())

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self._checkpoint is None:
            return
        with self._randomness:
            save_checkpoint(
                self._checkpoint,
                self._modules(),
                self._optimizer,
                step=self.done,
                scaler=self._scaler,
                device=self.device,
                facts={"best": self.best, "worse": self._worse},
            )

    def finish(self) -> None:
        """Leave in the student what is kept: the best weights, or the averaged ones, or the last ones."""
        if self.settings.patience and self.best is not None:
            load_weights(self._best_weights, self.student)
        elif self._averaged is not None:
            self.student.load_state_dict(self._averaged.module.state_dict())
        self.student.eval()

    @property
    def _best_weights(self) -> Path:
        assert self._checkpoint is not None
        return self._checkpoint.with_name("best.safetensors")

    def _modules(self) -> dict[str, nn.Module]:
        averaged = {} if self._averaged is None else {"averaged": self._averaged.module}
        return {"student": self.student, "objective": self.objective, **averaged}

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        if self._compiled is not None:
            random = torch.get_rng_state()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's, about what would be faster still
                    return self._gradients_through(self._compiled, batch)
            except torch._dynamo.exc.TorchDynamoException as error:
                why = " ".join(str(error).split())[:200]
                self.warning = f"the student is not compiled, but runs as it is: {why}"
                self._compiled = None
                torch.set_rng_state(random)
        return self._gradients_through(self.student, batch)

    def _gradients_through(self, forward: Callable[..., dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
        with self.settings.autocast(self.device):
            outputs = forward(batch.inputs)
        total, parts = self.objective(outputs, batch)
        self._scaler.scale(total / self.settings.accumulate).backward()
        return {"loss": total.detach(), **parts}

    def _step(self) -> None:
        settings = self.settings
        self.rate = learning_rate(
            self.done,
            steps=settings.steps,
            warmup=round(settings.warmup * settings.steps),
            peak=settings.learning_rate,
        )
        set_learning_rate(self._optimizer, self.rate)
        if settings.clip:
            self._scaler.unscale_(self._optimizer)
            clip_gradients(self._weights, max_norm=settings.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.done += 1
        if self._averaged is not None:
            self._averaged.update(self.student, step=self.done)
