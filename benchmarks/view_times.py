"""Seconds per epoch with a teacher in the loop, through timm's own task, from a cache, and from its inputs."""

import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from fresh import FreshViews
from measuring import interleaved, median_ratio, rate, show_rates
from timm.task import LogitDistillationTask

from pipelines.build import TrainingRun
from student.data import TrainingData
from student.optim import make_optimizer
from student.settings import TrainSettings
from student.trainer import train

__all__ = ["time_table"]

TIMM = "timm's distillation task"


def time_table(
    loops: Mapping[str, tuple[TrainingRun, TrainingData]],
    views: FreshViews,
    out: Path,
    *,
    images: int,
    repetitions: int,
) -> dict[str, Any]:
    """Every way to train the same student, an epoch in turn; seconds, and epochs after which the cache has paid."""
    first, (run, _) = next(iter(loops.items()))
    per_epoch = views.steps_per_epoch(run.settings.batch_size)
    epochs: dict[str, Iterator[object]] = {name: trained(run, data) for name, (run, data) in loops.items()}
    epochs[TIMM] = with_timm(run, views, out / "teacher")
    contestants = {name: functools.partial(rate, images, an_epoch(loop, per_epoch)) for name, loop in epochs.items()}
    rates = interleaved(contestants, repetitions=repetitions)
    show_rates(rates, unit="images/s", baseline=first)
    ratios = {name: median_ratio(rates, name, first) for name in rates}
    seconds = {name: images / sorted(found)[len(found) // 2] for name, found in rates.items()}
    extraction = json.loads((out / "extraction.json").read_text())
    paid = {
        name: {loop: extraction / max(seconds[loop] - seconds[name], 1e-9) for loop in (first, TIMM)}
        for name in seconds
        if name not in (first, TIMM)
    }
    for name, took in seconds.items():
        print(f"{name:<36}{took:8.3f} s an epoch of {images} images")
    print(f"extraction of all views, once: {extraction:.1f} s; has paid for itself after so many epochs: {paid}")
    return {"seconds_per_epoch": seconds, "ratios": ratios, "extraction_seconds": extraction, "paid_after": paid}


def trained(run: TrainingRun, data: TrainingData) -> Iterator[object]:
    """Our trainer, on a copy of the student."""
    return train(copy.deepcopy(run.student), copy.deepcopy(run.objective), data, endless(run.settings))


def with_timm(run: TrainingRun, views: FreshViews, teacher: Path) -> Iterator[object]:
    """timm's task for logits with the same teacher, views, temperature and optimizer."""
    student = timm.create_model("test_resnet", num_classes=views.classes)
    network = timm.create_model(f"local-dir:{teacher}", pretrained=True)
    options = {"distill_loss_weight": 1.0, "task_loss_weight": 0.0, "temperature": 2.0}
    criterion = torch.nn.CrossEntropyLoss()
    task = LogitDistillationTask(student, network, criterion, device=torch.device("cpu"), verbose=False, **options)
    settings = endless(run.settings)
    optimizer = make_optimizer([student], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    task.train()
    normalise = run.student.backbone.input.normalise  # type: ignore[union-attr]
    for batch in views.shuffled(settings.batch_size, seed=0, start=0, stop=settings.steps):
        loss = task(normalise(batch.inputs["images"]), batch.labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.get_clip_parameters(), settings.clip)
        optimizer.step()
        yield loss


def endless(settings: TrainSettings) -> TrainSettings:
    """More steps than are ever timed."""
    return TrainSettings(
        steps=100_000,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        interval=100_000,
    )


def an_epoch(loop: Iterator[object], steps: int) -> Callable[[], None]:
    """Runs a loop on by so many steps."""

    def run() -> None:
        for _ in itertools.islice(loop, steps):
            pass

    return run
