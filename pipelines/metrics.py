"""A training loop followed: its losses into metrics.jsonl and to trackers, its progress to whoever shows it."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from featurecache.types import Json
from pipelines.events import Advance, Message, Run
from pipelines.run_dir import RunDir
from pipelines.trackers import open_trackers

if TYPE_CHECKING:
    from student.trainee import Trainee
    from student.trainer import Step, Validated

__all__ = ["follow"]


def follow(
    loop: "Iterable[Step | Validated]",
    runs: Sequence[RunDir],
    trainees: "Sequence[Trainee]",
    *,
    track: Sequence[str] = (),
) -> Run[list[Json]]:
    """Write each student's metrics into its run and pass progress on; returns the last losses of each and the seconds
    of training. Losses are read every ten steps."""
    began = time.monotonic()
    with contextlib.ExitStack() as opened:
        logs = []
        for run, trainee in zip(runs, trainees, strict=True):
            recipe = run.recipe() if track else {}
            logs.append(_Log(run, opened.enter_context(open_trackers(track, run.path, recipe, step=trainee.done))))
        yield from _followed(loop, logs, trainees)
    seconds = round(time.monotonic() - began, 1)
    return [{**log.result, "seconds": seconds} for log in logs]


class _Log:
    """Where one student's numbers go."""

    def __init__(self, run: RunDir, trackers: Sequence[Any]) -> None:
        self.result: dict[str, Any] = run.last_losses()
        self._run, self._trackers = run, trackers

    def begin(self, step: int) -> None:
        """Steps from this one on are told anew."""
        self._run.forget_metrics_after(step - 1)

    def training(self, event: "Step") -> None:
        losses = {name: float(value) for name, value in event.losses.items()}
        self.result["training"] = losses
        line = {"step": event.step, "epoch": event.epoch, "learning_rate": event.learning_rate, **losses}
        self._write(line, {"learning_rate": event.learning_rate, **_under("training", losses)}, event.step)

    def validation(self, event: "Validated") -> None:
        losses = dict(event.losses)
        self.result["validation"] = losses
        line = {"step": event.step, "epoch": event.epoch, "validation": losses}
        self._write(line, _under("validation", losses), event.step)

    def _write(self, line: Json, values: dict[str, float], step: int) -> None:
        self._run.append_metrics(line)
        for tracker in self._trackers:
            tracker.log(values, step)


def _followed(loop: "Iterable[Step | Validated]", logs: Sequence[_Log], trainees: "Sequence[Trainee]") -> Run[None]:
    from student.trainer import LOG_EVERY, Step

    steps = trainees[0].settings.steps
    begun: set[int] = set()
    warned: set[int] = set()
    for event in loop:
        log, trainee = logs[event.student], trainees[event.student]
        if event.student not in begun:
            log.begin(event.step)
            if not begun:
                yield Advance("train", event.step - 1, steps, "steps")
            begun.add(event.student)
        if trainee.warning and event.student not in warned:
            warned.add(event.student)
            yield Message(trainee.warning)
        if not isinstance(event, Step):
            log.validation(event)
        elif event.step % LOG_EVERY == 0 or event.step == steps:
            log.training(event)
            losses = [f"{other.result['training']['loss']:.3f}" for other in logs if other.result["training"]]
            yield Advance("train", event.step, steps, "steps", {"loss": " ".join(losses)})
    for number, trainee in enumerate(trainees):
        if trainee.done < steps:
            which = f"student {number + 1} " if len(trainees) > 1 else ""
            yield Message(f"{which}stopped after {trainee.done:,} steps: validation has not become better since")


def _under(part: str, losses: dict[str, float]) -> dict[str, float]:
    return {f"{part}/{name}": value for name, value in losses.items()}
