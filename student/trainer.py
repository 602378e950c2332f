"""The one loop that trains students on cached targets; there is no teacher in it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from featurecache.errors import UsageError
from student.data import TrainingData
from student.objectives.weighted import WeightedSum
from student.parallel import Ranks, mean_over_ranks
from student.settings import TrainSettings
from student.trainee import Trainee

__all__ = ["LOG_EVERY", "Step", "Validated", "evaluate_objective", "train", "train_together"]

LOG_EVERY = 10
"""Steps between looks at the losses: reading one makes the device wait."""

_SAVE_SECONDS = 300
"""An epoch of a large data set takes hours; an interruption should not cost one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of one student."""

    step: int
    """How many were made, this one included."""
    epoch: int
    learning_rate: float
    losses: Mapping[str, Tensor]
    """The total and each objective's unweighted value; scalars that stay on the device until somebody reads them."""
    student: int = 0
    """Which of the students that are trained together."""


@dataclass(frozen=True, slots=True)
class Validated:
    """The objective on the validation part."""

    step: int
    epoch: int
    losses: Mapping[str, float]
    student: int = 0


def train(
    student: nn.Module,
    objective: WeightedSum,
    data: TrainingData,
    settings: TrainSettings,
    *,
    validation: TrainingData | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> Iterator[Step | Validated]:
    """Train one student in place, yielding every step, and a validation at every interval and at the end.

    `student` maps a batch of inputs to outputs by name, as a `Student` does.
    With `checkpoint`, everything is saved there after each validation and every five minutes; with `resume` the run
    goes on from it, with the same batches and the same random numbers as one that was never interrupted.
    `ranks` are the processes that do so together, one alone by default; every one is given all of the data.
    Raises FeatureCacheError when the loss is no longer finite.
    """
    trainee = Trainee(student, objective, settings, ranks=ranks or Ranks.alone(data.device), checkpoint=checkpoint)
    if resume and checkpoint is not None:
        trainee.resume()
    return train_together([trainee], data, settings, validation=validation)


def train_together(
    trainees: Sequence[Trainee],
    data: TrainingData,
    settings: TrainSettings,
    *,
    validation: TrainingData | None = None,
) -> Iterator[Step | Validated]:
    """The same for several students, which see the same batches: reading and decoding are paid once.

    Each has its own objective, optimizer and checkpoint. One that is ahead, because a run was interrupted between two
    checkpoints, waits for the others. `settings` are those of all.
    """
    has_validation = validation is not None and len(validation) > 0
    if settings.patience and not has_validation:
        raise UsageError("to stop early, rows are needed to validate on", hint="give --validation a part above 0")
    return _train(trainees, data, settings, validation if has_validation else None)


def _train(
    trainees: Sequence[Trainee], data: TrainingData, settings: TrainSettings, validation: TrainingData | None
) -> Iterator[Step | Validated]:
    per_step, ranks = settings.accumulate, trainees[0].ranks
    batches_per_epoch = data.steps_per_epoch(settings.batch_size)
    interval = settings.interval or max(batches_per_epoch // per_step, 100)
    waiting = [trainee for trainee in trainees if not trainee.has_stopped]
    first = min((trainee.done for trainee in waiting), default=settings.steps)
    batches = data.shuffled(
        settings.batch_size,
        seed=settings.seed,
        start=first * per_step,
        stop=settings.steps * per_step,
        part=(ranks.rank, ranks.world),
    )
    saved = time.monotonic()
    for trainee in waiting:
        trainee.student.train()
        trainee.objective.train()
    for number, batch in enumerate(batches, first * per_step):
        step, is_last = number // per_step + 1, (number + 1) % per_step == 0
        epoch = (step - 1) * per_step // batches_per_epoch
        learning = [trainee for trainee in waiting if trainee.done < step]
        for trainee in learning:
            losses = trainee.learn(batch, ends_step=is_last)
            if is_last:
                yield Step(step, epoch, trainee.rate, losses, trainees.index(trainee))
        if not is_last:
            continue
        is_round = step % interval == 0 or step == settings.steps
        looks = is_round or step % LOG_EVERY == 0
        saves = is_round or (looks and ranks.first_says(time.monotonic() - saved > _SAVE_SECONDS))
        if looks:
            for trainee in learning:
                trainee.check_finite(data.keys_of, weights=saves)
        if is_round and validation is not None:
            judged = [(trainee.judged, trainee.objective) for trainee in learning]
            for trainee, found in zip(learning, _evaluate(judged, validation, settings, ranks), strict=True):
                trainee.note_validation(found["loss"])
                yield Validated(step, epoch, found, trainees.index(trainee))
        if saves:
            for trainee in learning:
                trainee.save()
            saved = time.monotonic()
        waiting = [trainee for trainee in waiting if not trainee.has_stopped]
        if not waiting:
            break
    for trainee in trainees:
        trainee.finish()


def evaluate_objective(
    student: nn.Module, objective: WeightedSum, data: TrainingData, settings: TrainSettings
) -> dict[str, float]:
    """The mean of the total and of each objective over all rows, without gradients or dropout."""
    return _evaluate([(student, objective)], data, settings, Ranks.alone(data.device))[0]


def _evaluate(
    judged: Sequence[tuple[nn.Module, WeightedSum]], data: TrainingData, settings: TrainSettings, ranks: Ranks
) -> list[dict[str, float]]:
    """Of each student with its objective, in one pass over the rows; modules are left in the mode they were in.

    Every rank takes its share of the batches, each whole; but all of them where the weights are shared out, for then
    no rank can compute without the others.
    """
    shares = Ranks.alone(ranks.device) if settings.shard else ranks
    modules = [module for pair in judged for module in pair]
    were_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    names = [["loss", *objective.parts] for _, objective in judged]
    sums = [{name: torch.zeros((), device=data.device) for name in own} for own in names]
    rows = 0
    with torch.inference_mode():
        for batch in data.in_order(settings.batch_size, first=shares.rank, every=shares.world):
            rows += len(batch.rows)
            for (student, objective), found in zip(judged, sums, strict=True):
                with settings.autocast(data.device):
                    outputs = student(batch.inputs)
                total, parts = objective(outputs, batch)
                for name, value in {"loss": total, **parts}.items():
                    found[name] = found[name] + value.float() * len(batch.rows)
    for module, was_training in zip(modules, were_training, strict=True):
        module.train(was_training)
    return [mean_over_ranks(found, dict.fromkeys(found, rows), shares) for found in sums]
