"""One student in training: its objective, its optimizer, the average of its weights, and what it has come to."""

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from featurecache.errors import UsageError
from featurecache.inputs import Inputs
from student.checkpoint import load_checkpoint, load_weights, read_facts, save_checkpoint, save_tensors
from student.distribute import average_gradients, clip_gradients, copy_from_first, distribute, shard
from student.finite import Watch
from student.objectives.base import Batch
from student.objectives.weighted import WeightedSum
from student.optim import layer_scales, learning_rate, make_optimizer, set_learning_rate, trainable
from student.parallel import Ranks, gather_batch, gather_outputs
from student.randomness import Randomness
from student.settings import TrainSettings
from student.synced_norm import synchronise_norms

__all__ = ["Trainee"]


class Trainee:
    """A student that learns batch by batch; several of them can be shown the same batches."""

    def __init__(
        self,
        student: nn.Module,
        objective: WeightedSum,
        settings: TrainSettings,
        *,
        ranks: Ranks,
        checkpoint: Path | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        """`student` maps a batch of inputs to outputs by name, as a `Student` does; it is trained in place.

        `ranks` are the processes that train it together, each with a part of every batch, and where this one does so.
        `checkpoint` is where everything is saved. With `randomness` the student draws from random numbers of its own,
        so that it learns beside others what it would learn alone.
        Raises UsageError for a patience without a checkpoint, and a layer decay that the student has no depths for.
        """
        if settings.patience and checkpoint is None:
            raise UsageError("the best weights must be kept somewhere", hint="give a checkpoint, or no patience")
        self.settings = settings
        self.ranks = ranks
        self.student, self.objective = student.to(ranks.device), objective.to(ranks.device)
        if settings.channels_last:
            student.to(memory_format=torch.channels_last)
        self._forward = self._spread()
        self._averaged = ModelEmaV3(student, settings.ema, use_warmup=True) if settings.ema else None
        self._optimizer = make_optimizer(
            [student, objective],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            scales=layer_scales(student, settings.layer_decay) if settings.layer_decay < 1 else {},
        )
        self._scaler = torch.amp.GradScaler(ranks.device.type, enabled=settings.precision == "float16")
        self._weights = trainable([student, objective])  # finding them for each step costs as much as a small layer
        self._watch = Watch(self._weights)
        self._compiled: Any = torch.compile(self._forward) if settings.compile else None
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
                self._checkpoint,
                self._modules(),
                self._optimizer,
                scaler=self._scaler,
                device=self.ranks.device,
                ranks=self.ranks,
                seed=self.settings.seed,
            )
        facts = read_facts(self._checkpoint)
        self.best, self._worse = facts["best"], facts["worse"]

    def learn(self, batch: Batch, *, ends_step: bool = True) -> dict[str, Tensor]:
        """Add a batch's gradients and, with `ends_step`, make an optimizer step.

        Returns the total and each objective's own value, sums over the step so far of their parts: at its end the means
        over its batches. They are scalars that stay on the device, the same on every rank.
        """
        if not self._rows:
            self._optimizer.zero_grad(set_to_none=True)
        with self._randomness, self._exchanging(ends_step):
            losses = self._gradients(batch)
        share = 1 / self.settings.accumulate
        found = {name: share * value + self._losses.get(name, 0) for name, value in losses.items()}
        self._losses = {} if ends_step else found
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
        if not math.isfinite(loss) or (self.best is not None and loss >= self.best):
            self._worse += 1
            return
        self.best, self._worse = loss, 0
        if self.settings.patience and self.ranks.is_first:
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
                device=self.ranks.device,
                facts={"best": self.best, "worse": self._worse},
                ranks=self.ranks,
            )

    def finish(self) -> None:
        """Leave in the student what is kept: the best weights, or the averaged ones, or the last ones."""
        if self.settings.patience and self.best is not None:
            self.ranks.wait()
            load_weights(self._best_weights, self.student)
        elif self._averaged is not None:
            self.student.load_state_dict(self._averaged.module.state_dict())
        self.student.eval()

    @property
    def _best_weights(self) -> Path:
        assert self._checkpoint is not None
        return self._checkpoint.with_name("best.safetensors")

    def _spread(self) -> nn.Module:
        """What is called in training: the student, or what exchanges its gradients with the other ranks."""
        synchronise_norms(self.student, self.ranks)
        copy_from_first(self.objective, self.ranks)
        if self.settings.shard:
            return shard(self.student, self.ranks)
        # an objective on the student's layers leaves those above them without gradients
        uses_layers = any("." in head for head in self.objective.heads)
        return distribute(self.student, self.ranks, find_unused=uses_layers)

    def _exchanging(self, ends_step: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged once a step."""
        forward: Any = self._forward
        if hasattr(forward, "set_requires_gradient_sync"):
            forward.set_requires_gradient_sync(ends_step)
        elif not ends_step and hasattr(forward, "no_sync"):
            return forward.no_sync()
        return contextlib.nullcontext()

    def _modules(self) -> dict[str, nn.Module]:
        averaged = {} if self._averaged is None else {"averaged": self._averaged.module}
        return {"student": self.student, "objective": self.objective, **averaged}

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        if self._compiled is not None:
            before = Randomness(self.ranks.device)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's, about what would be faster still
                    return self._gradients_through(self._through_compiled, batch)
            except torch._dynamo.exc.TorchDynamoException as error:
                why = " ".join(str(error).split())[:200]
                self.warning = f"the student is not compiled, but runs as it is: {why}"
                self._compiled = None
                before.restore()
                if not self._rows:  # nothing of this step was learned before
                    self._optimizer.zero_grad(set_to_none=True)
        return self._gradients_through(self._forward, batch)

    def _through_compiled(self, inputs: Inputs) -> dict[str, Tensor]:
        try:
            found: dict[str, Tensor] = self._compiled(inputs)
        except KeyError as error:  # of a layer that the compiler passes by
            raise torch._dynamo.exc.TorchDynamoException(f"the output {error} is lost") from error
        return found

    def _gradients_through(self, forward: Callable[..., dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
        with self.settings.autocast(self.ranks.device):
            outputs = forward(batch.inputs)
        tokens = _token_dims(outputs, batch)
        outputs = gather_outputs(outputs, self.ranks, token_dims=tokens)
        batch = gather_batch(batch, self.ranks, token_dims=tokens)
        total, parts = self.objective(outputs, batch)
        self._scaler.scale(total / self.settings.accumulate).backward()
        self._rows.append(batch.rows)
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
        average_gradients(self.objective.parameters(), self.ranks)
        if settings.clip:
            self._scaler.unscale_(self._optimizer)
            clip_gradients(self._weights, max_norm=settings.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.done += 1
        if self._averaged is not None:
            self._averaged.update(self.student, step=self.done)


def _token_dims(outputs: dict[str, Tensor], batch: Batch) -> dict[str, tuple[int, ...]]:
    """Which outputs and targets are as long as the longest text of the batch: those with a vector for each token."""
    if "mask" not in batch.inputs:
        return {}
    values = {**batch.targets, **outputs}
    return {name: (1,) for name, value in values.items() if isinstance(value, Tensor) and value.ndim == 3}
