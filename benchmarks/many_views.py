"""How many views a cache needs: 1 to 16 against the teacher in the loop, wrong views, and what an epoch costs.

    OMP_NUM_THREADS=1 python benchmarks/many_views.py DATA OUT [--seeds 0,1,2,3,4] [--only learning|time]

DATA is a pattern of webdataset tars with train and test: the full set of glyphs, 'glyphs-{train,test}-*.tar'. The
teacher is a ResNet-18 fitted here on all of train; the student is timm's test_resnet, and learns from the teacher's
logits over 300 of those images, whose labels it never sees. All arms take the same number of steps over the same
images in the same order. What stands in OUT is not done again. Prints tables, and as the last line one JSON object.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fresh import FreshViews, NextView
from measuring import finish, show
from stages import run, spread, summarise
from view_times import time_table

from featurecache.augment import find_augmentation
from featurecache.sources import open_data
from featurecache.store.reader import open_cache
from featurecache.teachers import load_teacher
from pipelines.build import TrainingRun, build, open_rows
from pipelines.classifiers import TimmClassifier
from pipelines.recipe import TrainRecipe
from student.data import CachedData, TrainingData
from student.evaluate import run_student
from student.join import join
from student.models.student import Student
from student.objectives.base import Dimensions
from student.objectives.weighted import make_objective
from student.settings import TrainSettings
from student.trainer import train

SIZE, IMAGES, BATCH, STEPS, MOST_VIEWS = 32, 300, 50, 1200, 16
AUGMENTATION = Path(__file__).with_name("glyphs.toml")
LOOP, NEXT, PLAIN = "teacher in the loop", "wrong: targets of the next view", "wrong: targets of the plain view"
ARMS = [*(f"{count} views" for count in (1, 2, 4, 8, 16)), LOOP, NEXT, PLAIN]


def main() -> None:
    """Do what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--only", choices=("learning", "time"))
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(given.data, given.out)
    setting.prepare()
    facts: dict[str, Any] = {}
    if given.only != "time":
        facts |= learning(setting, [int(seed) for seed in given.seeds.split(",")])
    if given.only != "learning":
        loops = {
            LOOP: (setting.training_run(0), setting.data_of(LOOP, setting.training_run(0))),
            "from the cache": _run_and_data(setting.training_run(0, from_cache=False)),
            "from the cache, with its inputs": _run_and_data(setting.training_run(0)),
        }
        facts |= time_table(loops, setting.views_alone(), given.out, images=IMAGES, repetitions=given.repetitions)
    finish(**facts)


def _run_and_data(run: TrainingRun) -> tuple[TrainingRun, TrainingData]:
    return run, run.training


class Setting:
    """Teacher, cache and data of the comparison."""

    def __init__(self, data: str, out: Path) -> None:
        self.data, self.out, self.cache = data, out, out / "cache"

    def prepare(self) -> None:
        """The teacher, the cache of 16 views with inputs, and the test split, unless they stand."""
        if not (self.out / "teacher" / "config.json").exists():
            self._fit_teacher()
        teacher = ["--teacher", str(self.out / "teacher")]
        views = ["--views", str(MOST_VIEWS), "--augment", str(AUGMENTATION), "--store-inputs", "64"]
        kept = ["--outputs", "logits", "--encode", "logits=float32"]
        some = ["--data", self.data, "--split", "train", "--limit", str(IMAGES)]
        began = time.perf_counter()
        if not (self.cache / "seals").exists():
            run("extract", *teacher, *some, *views, *kept, "--out", str(self.cache), out=self.cache / "seals")
            (self.out / "extraction.json").write_text(json.dumps(time.perf_counter() - began))
        run("extend", str(self.cache), "--split", "test", "--data", self.data, *teacher, out=self.cache / "test")

    def training_run(self, seed: int, *, views: int = MOST_VIEWS, from_cache: bool = True) -> TrainingRun:
        """A fresh student, and what the cache gives it; its inputs too, or those of the data."""
        recipe = TrainRecipe(
            cache=str(self.cache),
            data=None if from_cache else (self.data,),
            missing="skip",
            student="test_resnet",
            objective="kl(temperature=2)",
            learning_rate=2e-3,
            batch_size=BATCH,
            steps=STEPS,
            validation=0,
            views=views,
            seed=seed,
        )
        return build(recipe, open_rows(recipe), device="cpu", workers=0)

    def data_of(self, arm: str, run: TrainingRun) -> TrainingData:
        """What a student of this arm is trained on."""
        if arm in (LOOP, PLAIN):
            teacher = load_teacher(str(self.out / "teacher"), modality="image")
            return replace_teacher(self.views_alone(), teacher, plain=arm == PLAIN)
        data = run.training
        if arm == NEXT:
            data.targets = NextView(data.targets, MOST_VIEWS)  # type: ignore[assignment]
        return data

    def views_alone(self) -> FreshViews:
        """Fresh views of the same images, without targets."""
        source = open_data(self.data, splits=["train"], limit=IMAGES)["train"]
        network_input = self.training_run(0).student.backbone.input
        return FreshViews(source, network_input, find_augmentation(str(AUGMENTATION)))  # type: ignore[arg-type]

    def test_scores(self, student: Student) -> dict[str, float]:
        """On the test part, in the plain view: top-1 accuracy of student and teacher, and how often they agree."""
        reader = open_cache(self.cache).split("test")
        source = open_data(self.data, splits=["test"])["test"]
        rows = join(reader, source, ["logits"])
        places = {"samples": rows.samples, "labels": rows.labels, "rows": rows.rows, "sample_of": rows.sample_of}
        data = CachedData(source, student.backbone.input, reader=reader, outputs=["logits"], **places)
        found = run_student(student, data)["logits"].argmax(1).numpy()
        teacher = reader.read(rows.rows, outputs=["logits"])["logits"].argmax(1).numpy()
        return {
            "accuracy": float((found == rows.labels).mean()),
            "agreement": float((found == teacher).mean()),
            "teacher": float((teacher == rows.labels).mean()),
        }

    def _fit_teacher(self) -> None:
        """A ResNet-18 on all labels of train: ten epochs of milder random views than its students will see."""
        print("fit the teacher", flush=True)
        source = open_data(self.data, splits=["train"])["train"]
        torch.manual_seed(0)
        network = TimmClassifier("resnet18", source.class_names, pretrained=False, img_size=SIZE)
        program = find_augmentation(str(AUGMENTATION))
        crop, rotate, colour = program.operations
        milder = (replace(crop, scale=(0.5, 1.0)), replace(rotate, degrees=15.0), colour)  # type: ignore[type-var]
        data = FreshViews(source, network.input, replace(program, operations=milder))
        widths = Dimensions(features=1, targets={"labels": len(source.class_names)})
        settings = TrainSettings(steps=10 * data.steps_per_epoch(BATCH), batch_size=BATCH, weight_decay=0.01)
        for _ in train(network, make_objective("ce", widths, ["labels"]), data, settings):
            pass
        (self.out / "teacher").mkdir()
        network.save(self.out / "teacher")


def replace_teacher(views: FreshViews, teacher: Any, *, plain: bool) -> FreshViews:
    """The same views with a teacher in the loop."""
    views.teacher, views.plain_targets = teacher, plain
    return views


def learning(setting: Setting, seeds: Sequence[int]) -> dict[str, Any]:
    """Every arm with every seed, and tables of how they do on the test part."""
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            kept = setting.out / "runs" / f"{arm.replace(': ', '-').replace(' ', '-')}-{seed}.json"
            if not kept.exists():
                print(f"{arm}, seed {seed}", flush=True)
                kept.parent.mkdir(exist_ok=True)
                kept.write_text(json.dumps(trained(setting, arm, seed)))
            scores[arm].append(json.loads(kept.read_text()))
    teacher = scores[LOOP][0]["teacher"]
    points = {}
    for name in ("accuracy", "agreement"):
        points[name] = {arm: [100 * score[name] for score in found] for arm, found in scores.items()}
        rows = [
            (arm, summarise(found), spread(found), *paired(points[name], arm)) for arm, found in points[name].items()
        ]
        show((f"{name} on test, %", "mean ± sd", "seeds", f"less {LOOP}", f"less {MOST_VIEWS} views"), rows)
    print(f"the teacher's accuracy: {100 * teacher:.1f} %")
    return {"points": points, "teacher": teacher}


def trained(setting: Setting, arm: str, seed: int) -> dict[str, float]:
    """One student from beginning to end, and its scores."""
    views = int(arm.split()[0]) if arm.endswith("views") else MOST_VIEWS
    run = setting.training_run(seed, views=views)
    data = setting.data_of(arm, run)
    began = time.perf_counter()
    for _ in train(run.student, run.objective, data, run.settings):
        pass
    seconds = time.perf_counter() - began
    return {**setting.test_scores(run.student), "seconds": seconds}


def paired(points: Mapping[str, list[float]], arm: str) -> tuple[str, str]:
    """Differences by seed from the teacher in the loop and from 16 views."""
    others = (points[LOOP], points[f"{MOST_VIEWS} views"])
    less = [[ours - theirs for ours, theirs in zip(points[arm], other, strict=True)] for other in others]
    return summarise(less[0]), summarise(less[1])


if __name__ == "__main__":
    main()
