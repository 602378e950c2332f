"""The trainer against a bare loop over the same student and the same batches, both fed from memory.

    python benchmarks/train.py FOLDER [--threads 1] [--segment 10] [--repetitions 21]

The bare loop is forward, loss, backward, clipping and optimizer step, as one would write them by hand. All of them take
turns, some steps each. Also shown: the trainer as `fc train-student` drives it, with its metrics, and the trainer fed
from a cache and a source by the process itself. FOLDER keeps the caches. Prints tables, and as the last line one JSON
object; `ratio_to_bare_loop` is the worse of the image and the text student.
"""

import argparse
import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measuring import finish, interleaved, median_ratio, rate, show_rates

from pipelines.build import TrainingRun, build, open_rows
from pipelines.events import default_device
from pipelines.events import finish as run_to_the_end
from pipelines.extract import extract_cache
from pipelines.recipe import TrainRecipe
from pipelines.run_dir import RunDir
from pipelines.train import follow
from student.objectives.base import Batch
from student.optim import make_optimizer
from student.trainer import TrainSettings, train

ROWS = 2048
STUDENTS = {
    "image": ("synthetic", {"student": "mobilenetv3_small_050", "img_size": 64, "batch_size": 32}),
    "text": ("synthetic-text", {"student": "bert:2x128", "max_length": 32, "batch_size": 32}),
}
TARGETS = {"dim": 384, "classes": 1000}


def main() -> None:
    """Make the caches that are missing, then measure both students."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--segment", type=int, default=10, help="steps of a turn, a multiple of 10")
    parser.add_argument("--repetitions", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ratios, driven = {}, {}
    for modality in STUDENTS:
        run = training_run(given.folder, modality, given)
        rates = interleaved(
            contestants(run, given.folder / f"run-{modality}", given.segment), repetitions=given.repetitions
        )
        print(f"{run.student.backbone.name}, batches of {run.settings.batch_size}, {given.threads} thread(s)")
        show_rates(rates, unit="steps/s", baseline="bare loop")
        ratios[modality] = median_ratio(rates, "trainer", "bare loop")
        driven[modality] = median_ratio(rates, "fc train-student", "bare loop")
    finish(ratio_to_bare_loop=min(ratios.values()), trainer=ratios, train_student=driven)


def training_run(folder: Path, modality: str, given: argparse.Namespace) -> TrainingRun:
    """What `fc train-student` would train, on a cache of random targets as wide as MiniLM's."""
    data, student = STUDENTS[modality]
    cache = folder / f"cache-{modality}"
    extraction = extract_cache(teacher="random", data=f"{data}:{ROWS}", out=cache, model_kwargs=TARGETS, device="cpu")
    run_to_the_end(extraction)
    steps = given.segment * (given.repetitions + 2)
    recipe = TrainRecipe(cache=str(cache), steps=steps, validation=0, objective="kl:1,cosine:1", **student)
    return build(recipe, open_rows(recipe), device=given.device, workers=0)


def contestants(run: TrainingRun, folder: Path, segment: int) -> dict[str, Callable[[], float]]:
    """Four ways to train copies of one student, a segment at a time; steps per second."""
    settings = run.settings
    steps = run.training.shuffled(settings.batch_size, seed=0, start=0, stop=8)
    memory = InMemory(list(steps), run.training.device)
    folder.mkdir(parents=True, exist_ok=True)
    loops: dict[str, Iterator[object]] = {
        "bare loop": bare_loop(*copied(run), memory, settings),
        "trainer": train(*copied(run), memory, settings),
        "fc train-student": follow(train(*copied(run), memory, settings), RunDir(folder), settings.steps),
        "trainer, from the cache": train(*copied(run), run.training, settings),
    }
    events = {"fc train-student": segment // 10}  # it tells of every tenth step
    works = {name: segment_of(loop, events.get(name, segment)) for name, loop in loops.items()}
    return {name: functools.partial(rate, segment, work) for name, work in works.items()}


def segment_of(loop: Iterator[object], events: int) -> Callable[[], None]:
    """Runs a loop on by so many events, and waits for the device."""

    def run() -> None:
        for _ in itertools.islice(loop, events):
            pass
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def copied(run: TrainingRun) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A student and its objective of their own, with the same weights."""
    return copy.deepcopy(run.student), copy.deepcopy(run.objective)


def bare_loop(
    student: torch.nn.Module, objective: torch.nn.Module, data: "InMemory", settings: TrainSettings
) -> Iterator[int]:
    """The loop one would write by hand."""
    student.to(data.device).train()
    objective.to(data.device)
    optimizer = make_optimizer([student, objective], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    parameters = [*student.parameters(), *objective.parameters()]
    for step, batch in enumerate(itertools.cycle(data.batches)):
        loss, _ = objective(student(batch.inputs), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        yield step


class InMemory:
    """Prepared batches on the device, again and again: data that costs nothing."""

    def __init__(self, batches: list[Batch], device: torch.device) -> None:
        self.batches = batches
        self.device = device

    def __len__(self) -> int:
        return sum(len(batch.rows) for batch in self.batches)

    def steps_per_epoch(self, batch_size: int) -> int:
        """All of them."""
        return len(self.batches)

    def shuffled(self, batch_size: int, *, seed: int, start: int, stop: int) -> Iterator[Batch]:
        """Steps [start, stop), not shuffled at all."""
        return itertools.islice(itertools.cycle(self.batches), start, stop)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Each once."""
        return iter(self.batches)

    def keys_of(self, rows: torch.Tensor) -> list[str]:
        """They have no keys here."""
        return [str(row) for row in rows.tolist()]


if __name__ == "__main__":
    main()
