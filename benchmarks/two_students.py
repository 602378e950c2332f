"""Two students in one run against two runs, for students whose batches cost more than they do.

    python benchmarks/two_students.py FOLDER [--threads 1] [--segment 4] [--repetitions 9]

The images are JPEGs of 500 x 375 pixels, made here; the students are a tiny ResNet and a tiny EfficientNet at 64
pixels, so decoding and resizing take most of a step. Each alone and both together take turns, some steps each, in one
process. FOLDER keeps images and cache. Prints a table, and as the last line one JSON object; `cost` is the time of a
step of both together over that of a step of one and a step of the other.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measuring import finish, interleaved, rate, show_rates
from train import segment_of
from views import make_images

from pipelines.build import build_together, open_rows
from pipelines.events import default_device
from pipelines.events import finish as run_to_the_end
from pipelines.extract import extract_cache
from pipelines.machine import Machine
from pipelines.recipe import TrainRecipe
from student.parallel import Ranks
from student.trainee import Trainee
from student.trainer import train_together

STUDENTS = ("test_resnet", "test_efficientnet")
BOTH = "both in one run"


def main() -> None:
    """Make images and cache if they are missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--segment", type=int, default=4, help="steps of a turn")
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images, cache = make_images(given.folder / "images"), given.folder / "cache-two"
    extraction = extract_cache(
        teacher="random", data=str(images), out=cache, model_kwargs={"dim": 512}, device="cpu", workers=0
    )
    run_to_the_end(extraction)
    groups = {**{name: (name,) for name in STUDENTS}, BOTH: STUDENTS}
    rates = interleaved(
        {name: contestant(given, cache, images, students) for name, students in groups.items()},
        repetitions=given.repetitions,
    )
    print(f"images of 64 pixels, batches of {given.batch}, {given.threads} thread(s)")
    show_rates(rates, unit="steps/s", baseline=STUDENTS[0])
    one, other = (rates[name] for name in STUDENTS)
    costs = [(1 / both) / (1 / a + 1 / b) for both, a, b in zip(rates[BOTH], one, other, strict=True)]
    low, middle, high = statistics.quantiles(costs, n=4, method="inclusive")
    finish(cost=middle, middle_half=[low, high])


def contestant(given: argparse.Namespace, cache: Path, images: Path, students: tuple[str, ...]) -> Callable[[], float]:
    """Trains these students a segment of steps at a time; steps per second."""
    recipes = [
        TrainRecipe(
            cache=str(cache),
            data=(str(images),),
            student=name,
            img_size=64,
            objective="cosine",
            validation=0.0,
            batch_size=given.batch,
            steps=given.segment * (given.repetitions + 2),
        )
        for name in students
    ]
    ranks = Ranks.alone(given.device)
    built = build_together(recipes, open_rows(recipes[0]), ranks, Machine(workers=given.workers))
    trainees = [
        Trainee(one.student, one.objective, one.settings, ranks=ranks, randomness=one.randomness) for one in built
    ]
    loop: Iterator[object] = train_together(trainees, built[0].training, built[0].settings)
    return functools.partial(rate, given.segment, segment_of(loop, given.segment * len(students)))


if __name__ == "__main__":
    main()
