"""Training on several views of one decoding, against the same student on the same images from memory.

    python benchmarks/views.py FOLDER [--views 4] [--augment standard] [--batch 32] [--threads 2] [--repetitions 9]

The images are JPEGs of 500 x 375 pixels, made here; the student is a ResNet-18 at 160 pixels. The bare loop is forward,
loss, backward, clipping and optimizer step on batches that are ready; beside it the trainer on the same batches, on
samples that are read, decoded and shown in several views, and on inputs that the cache holds. All take turns. FOLDER
keeps images and cache. Prints a table, and as the last line one JSON object; `cost` is the time of a step with views
over that of the bare loop.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import finish, interleaved, median_ratio, rate, show_rates
from PIL import Image
from train import InMemory, bare_loop, copied, segment_of

from pipelines.build import TrainingRun, build, open_rows
from pipelines.events import default_device
from pipelines.events import finish as run_to_the_end
from pipelines.extract import extract_cache
from pipelines.recipe import TrainRecipe
from student.trainer import train

IMAGES = 256
STORED = 176


def main() -> None:
    """Make images and cache if they are missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--augment", default="standard")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--segment", type=int, default=2, help="steps of a turn")
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = make_images(given.folder / "images")
    cache = given.folder / f"cache-{given.augment}-{given.views}"
    extraction = extract_cache(
        teacher="random",
        data=str(images),
        out=cache,
        views=given.views,
        augment=given.augment,
        store_inputs=STORED,
        model_kwargs={"dim": 512},
        device="cpu",
    )
    run_to_the_end(extraction)
    rates = interleaved(contestants(given, cache, images), repetitions=given.repetitions)
    print(f"ResNet-18 at 160 pixels, batches of {given.batch} images, {given.views} views of each, {given.device}")
    show_rates(rates, unit="steps/s", baseline="bare loop")
    finish(cost=1 / median_ratio(rates, "views of one decoding", "bare loop"), **ratios(rates))


def contestants(given: argparse.Namespace, cache: Path, images: Path) -> dict[str, Callable[[], float]]:
    """Each trains a copy of one student, a segment of steps at a time; steps per second."""
    run = training_run(given, cache, images)
    stored = training_run(given, cache, None)
    batches = list(run.training.shuffled(given.batch, seed=0, start=0, stop=4))
    memory = InMemory(batches, run.training.device)
    loops: dict[str, Iterator[object]] = {
        "bare loop": bare_loop(*copied(run), memory, run.settings),
        "trainer, from memory": train(*copied(run), memory, run.settings),
        "views of one decoding": train(*copied(run), run.training, run.settings),
        "views of stored inputs": train(*copied(run), stored.training, run.settings),
    }
    return {
        name: functools.partial(rate, given.segment, segment_of(loop, given.segment)) for name, loop in loops.items()
    }


def training_run(given: argparse.Namespace, cache: Path, images: Path | None) -> TrainingRun:
    """What `fc train-student` would train, on samples or, without images, on the inputs in the cache."""
    recipe = TrainRecipe(
        cache=str(cache),
        data=(str(images),) if images else None,
        student="resnet18",
        img_size=160,
        objective="cosine",
        validation=0.0,
        batch_size=given.batch,
        views_per_sample=given.views,
        steps=given.segment * (given.repetitions + 2),
    )
    return build(recipe, open_rows(recipe), device=given.device, workers=given.workers)


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Of each contestant's rate to the bare loop's."""
    names = {"trainer, from memory": "trainer", "views of stored inputs": "stored"}
    return {f"ratio_{short}": median_ratio(rates, name, "bare loop") for name, short in names.items()}


def make_images(folder: Path) -> Path:
    """JPEGs with slopes, edges and grain, about as hard to decode as photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        path = folder / f"{number:04d}.jpg"
        if path.exists():
            continue
        draw = np.random.default_rng(number)
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = draw.normal(0, 12, (375, 500, 1))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


if __name__ == "__main__":
    main()
