"""The trainer against a bare loop over the same student and the same batches, both fed from memory.

    python benchmarks/train.py FOLDER [--threads 1] [--segment 10] [--repetitions 21]
    python benchmarks/train.py FOLDER --device cuda --image-student resnet18 --img-size 224 --batch-size 256

The bare loop is forward, loss, backward, clipping and optimizer step, as one would write them by hand. All of them take
turns, some steps each. Also shown: the trainer as `fc train-student` drives it, with its metrics; the trainer fed from
a cache and a source by the process itself; and for images what a cache saves: the bare loop with a teacher in it, and
timm's own distillation task (with random weights, which cost the same). On a GPU the part of the time in which it
computes is told too. FOLDER keeps the caches. Prints tables, and as the last line one JSON object;
`ratio_to_bare_loop` is the worse of the image and the text student.
"""

import argparse
import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from measuring import busy_fraction, finish, interleaved, median_ratio, rate, show_rates
from timm.task import LogitDistillationTask
from torch import Tensor, nn

from pipelines.build import TrainingRun, build, open_rows
from pipelines.events import default_device
from pipelines.events import finish as run_to_the_end
from pipelines.extract import extract_cache
from pipelines.metrics import follow
from pipelines.recipe import TrainRecipe
from pipelines.run_dir import RunDir
from student.objectives.base import Batch
from student.objectives.kl import kl_divergence
from student.optim import make_optimizer
from student.parallel import Ranks
from student.settings import TrainSettings
from student.trainee import Trainee
from student.trainer import train, train_together

ROWS = 2048
TARGETS = {"dim": 384, "classes": 1000}


def main() -> None:
    """Make the caches that are missing, then measure both students."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--segment", type=int, default=10, help="steps of a turn, a multiple of 10")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--image-student", default="mobilenetv3_small_050")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--teacher", default="resnet50", help="of the loops that run one")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    students = {
        "image": ("synthetic", {"student": given.image_student, "img_size": given.img_size}),
        "text": ("synthetic-text", {"student": "bert:2x128", "max_length": 32}),
    }
    ratios, driven, online, busy = {}, {}, {}, {}
    for modality, (data, student) in students.items():
        run = training_run(given.folder / f"cache-{modality}", data, student, given)
        loops = contestants(run, given.folder / f"run-{modality}", given)
        rates = interleaved(loops, repetitions=given.repetitions)
        print(f"{run.student.backbone.name}, batches of {run.settings.batch_size}, {given.threads} thread(s)")
        show_rates(rates, unit="steps/s", baseline="bare loop")
        ratios[modality] = median_ratio(rates, "trainer", "bare loop")
        driven[modality] = median_ratio(rates, "fc train-student", "bare loop")
        online |= {name: median_ratio(rates, "trainer", name) for name in rates if "teacher" in name or "timm" in name}
        if given.device.startswith("cuda"):
            busy[modality] = busy_fraction(loops["trainer"])
    finish(
        ratio_to_bare_loop=min(ratios.values()), trainer=ratios, train_student=driven, of_online=online, gpu_busy=busy
    )


def training_run(cache: Path, data: str, student: dict[str, object], given: argparse.Namespace) -> TrainingRun:
    """What `fc train-student` would train, on a cache of random targets as wide as MiniLM's."""
    extraction = extract_cache(teacher="random", data=f"{data}:{ROWS}", out=cache, model_kwargs=TARGETS, device="cpu")
    run_to_the_end(extraction)
    steps = given.segment * (given.repetitions + 2)
    recipe = TrainRecipe(
        cache=str(cache), steps=steps, validation=0.0, objective="kl:1,cosine:1", batch_size=given.batch_size, **student
    )
    return build(recipe, open_rows(recipe), device=given.device, workers=0)


def contestants(run: TrainingRun, folder: Path, given: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Ways to train copies of one student, a segment at a time; steps per second."""
    settings, segment = run.settings, given.segment
    steps = run.training.shuffled(settings.batch_size, seed=0, start=0, stop=8)
    memory = InMemory(list(steps), run.training.device)
    folder.mkdir(parents=True, exist_ok=True)
    loops: dict[str, Iterator[object]] = {
        "bare loop": bare_loop(*copied(run), memory, settings),
        "trainer": train(*copied(run), memory, settings),
        "fc train-student": followed(run, memory, folder),
        "trainer, from the cache": train(*copied(run), run.training, settings),
    }
    if run.training.source.modality == "image":
        teacher = timm.create_model(given.teacher, num_classes=TARGETS["classes"]).to(memory.device).eval()
        loops["teacher in the loop"] = online_loop(*copied(run), teacher, memory, settings)
        loops["timm's task"] = timm_loop(run, teacher, memory, settings)
    events = {"fc train-student": segment // 10}  # it tells of every tenth step
    works = {name: segment_of(loop, events.get(name, segment)) for name, loop in loops.items()}
    return {name: functools.partial(rate, segment, work) for name, work in works.items()}


def followed(run: TrainingRun, memory: "InMemory", folder: Path) -> Iterator[object]:
    """The trainer with its metrics, as the command drives it."""
    trainee = Trainee(*copied(run), run.settings, ranks=Ranks.alone(memory.device))
    loop = train_together([trainee], memory, run.settings)
    return follow(loop, [RunDir(folder)], [trainee])


def segment_of(loop: Iterator[object], events: int) -> Callable[[], None]:
    """Runs a loop on by so many events, and waits for the device."""

    def run() -> None:
        for _ in itertools.islice(loop, events):
            pass
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def copied(run: TrainingRun) -> tuple[nn.Module, nn.Module]:
    """A student and its objective of their own, with the same weights."""
    return copy.deepcopy(run.student), copy.deepcopy(run.objective)


def bare_loop(student: nn.Module, objective: nn.Module, data: "InMemory", settings: TrainSettings) -> Iterator[Tensor]:
    """The loop one would write by hand."""

    def loss(batch: Batch) -> Tensor:
        with settings.autocast(data.device):
            outputs = student(batch.inputs)
        return objective(outputs, batch)[0]

    return descent([student, objective], loss, data, settings)


def online_loop(
    student: nn.Module, objective: nn.Module, teacher: nn.Module, data: "InMemory", settings: TrainSettings
) -> Iterator[Tensor]:
    """The same, with a teacher that gives the logits anew for every batch."""

    def loss(batch: Batch) -> Tensor:
        images = student.backbone.input.normalise(batch.inputs["images"])
        with settings.autocast(data.device):
            outputs = student(batch.inputs)
            with torch.no_grad():
                logits = teacher(images)
        return kl_divergence(outputs["logits"], logits.float(), temperature=4.0)

    return descent([student, objective], loss, data, settings)


def timm_loop(run: TrainingRun, teacher: nn.Module, data: "InMemory", settings: TrainSettings) -> Iterator[Tensor]:
    """timm's LogitDistillationTask over its own student of the same architecture, with a classifier as wide."""
    name = run.student.backbone.name
    size = {"img_size": run.student.backbone.input.size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    student = timm.create_model(name, num_classes=TARGETS["classes"], **size)
    task = LogitDistillationTask(
        student,
        teacher,
        nn.CrossEntropyLoss(),
        device=data.device,
        verbose=False,
        distill_loss_weight=1.0,
        task_loss_weight=0.0,
        temperature=4.0,
    )
    normalise = run.student.backbone.input.normalise

    def loss(batch: Batch) -> Tensor:
        labels = torch.zeros(len(batch.rows), dtype=torch.long, device=data.device)
        with settings.autocast(data.device):
            found: Tensor = task(normalise(batch.inputs["images"]), labels)["loss"]
        return found

    return descent([task], loss, data, settings)


def descent(
    modules: list[nn.Module], loss: Callable[[Batch], Tensor], data: "InMemory", settings: TrainSettings
) -> Iterator[Tensor]:
    """Steps down a loss, without end."""
    for module in modules:
        module.to(data.device).train()
    optimizer = make_optimizer(modules, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for batch in itertools.cycle(data.batches):
        found = loss(batch)
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        yield found.detach()


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

    def shuffled(
        self, batch_size: int, *, seed: int, start: int, stop: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Steps [start, stop), not shuffled at all."""
        return itertools.islice(itertools.cycle(self.batches), start, stop)

    def in_order(self, batch_size: int, *, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Each once."""
        return iter(self.batches)

    def keys_of(self, rows: torch.Tensor) -> list[str]:
        """Their numbers."""
        return [str(row) for row in rows.tolist()]


if __name__ == "__main__":
    main()
