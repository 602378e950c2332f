"""From recipes and rows to what is trained: students, objectives, settings, and the data that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from featurecache.errors import UsageError
from featurecache.layers import is_layer
from featurecache.types import NO_LABEL
from pipelines.events import default_device, default_workers
from pipelines.machine import Machine
from pipelines.recipe import TrainRecipe
from pipelines.rows import Rows, of_first_cache, open_rows
from student.balance import Balance
from student.data import CachedData
from student.given import Given
from student.models.base import Backbone, Layered
from student.models.build import DEFAULT_STUDENTS, build_backbone
from student.models.student import Student
from student.objectives import OBJECTIVES
from student.objectives.base import Dimensions
from student.objectives.weighted import WeightedSum, make_objective, parse_objective
from student.parallel import Ranks
from student.randomness import Randomness, seed_rank
from student.selection import first_rows, labelled_rows, validation_rows
from student.settings import TrainSettings
from student.start import start_from, start_place
from student.views import PLAIN

__all__ = ["TrainingRun", "build", "build_together", "open_rows", "try_once"]

_LEARNING_RATES = {"image": 1e-3, "text": 5e-4}


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Everything `student.trainer.train` takes."""

    student: Student
    objective: WeightedSum
    training: CachedData
    validation: CachedData
    settings: TrainSettings
    balances: Mapping[str, Balance]
    """How targets are balanced, by the names of outputs."""
    randomness: Randomness | None = None
    """The student's own random numbers, where others are trained beside it."""


def build(
    recipe: TrainRecipe, rows: Rows, *, device: str | None = None, workers: int | None = None, **machine: Any
) -> TrainingRun:
    """One student and its data; `machine` has fields of `Machine`. Raises UsageError for an objective that this cache
    cannot serve."""
    ranks = Ranks.alone(device or default_device())
    return build_together([recipe], rows, ranks, Machine(workers=workers, **machine))[0]


def build_together(
    recipes: Sequence[TrainRecipe],
    rows: Rows,
    ranks: Ranks,
    machine: Machine,
    balances: Mapping[str, Balance] | None = None,
) -> list[TrainingRun]:
    """Students that are trained on the same batches, by recipes that differ in the student alone. Raises UsageError.

    `balances` are those that a run was begun with: the last bits of new ones could turn what it learns.
    """
    recipe = recipes[0]
    seen = np.where(labelled_rows(rows.keys, rows.joined.labels, recipe.labels), rows.joined.labels, NO_LABEL)
    # rows without a label teach nothing where labels are all that the objective looks at
    usable = np.ones(len(rows.keys), bool) if rows.outputs else seen != NO_LABEL
    held_out = validation_rows(rows.keys, recipe.validation)
    chosen = usable & ~held_out
    chosen = first_rows(rows.keys, chosen, recipe.samples, labelled=seen != NO_LABEL)
    training_rows = rows.joined.rows[chosen]
    if not training_rows.size:
        raise UsageError("no row is left to train on", hint="lower --validation, or give more data or --labels")
    if balances is None:
        found = rows.taught.balances(rows.outputs, training_rows, views=rows.views.count, device=ranks.device)
        balances = {name: _of_first(balance, ranks) for name, balance in found.items()}
    labels = _labels(rows, seen)
    made = []
    for each in recipes:
        torch.manual_seed(each.seed)
        student, objective = _student(each, rows, labels, balances)
        seed_rank(each.seed, ranks.rank)
        made.append((student, objective, Randomness(ranks.device) if len(recipes) > 1 else None))
    student = made[0][0]
    loading = {
        "outputs": of_first_cache(rows.taught, rows.outputs),
        "targets": rows.taught.targets(rows.outputs, rows.objective, balances) if rows.outputs else None,
        "residency": machine.targets,
        "views": rows.views,
        "stored": rows.stored,
        "check_inputs": recipe.check_inputs,
        "bank_rows": max(objective.bank_rows for _, objective, _ in made),
        "bank_outputs": made[0][1].bank_outputs,
        "shuffle": recipe.shuffle,
        "device": ranks.device,
        "workers": default_workers(ranks.device.type) if machine.workers is None else machine.workers,
    }
    training = _data(rows, student, labels, chosen, loading)
    # only the plain view is validated
    validation = _data(rows, student, labels, usable & held_out, {**loading, "views": PLAIN})
    training.shuffle = "blocks" if ranks.first_says(training.shuffle == "blocks") else "global"
    _check_batches(recipe, [student for student, _, _ in made], training, ranks)
    settings = _settings(recipe, training, machine)
    return [
        TrainingRun(student, objective, training, validation, settings, balances, randomness)
        for student, objective, randomness in made
    ]


def _of_first(balance: Balance, ranks: Ranks) -> Balance:
    """The first process's: on unlike hosts the last bits differ, and with them eigenvectors."""
    matrix = None if balance.matrix is None else ranks.of_first(balance.matrix)
    return replace(balance, mean=ranks.of_first(balance.mean), scale=ranks.of_first(balance.scale), matrix=matrix)


def try_once(run: TrainingRun) -> None:
    """Compute the objective on two rows, so that what cannot work is refused before a run directory is made.

    Nothing is changed by it. Raises what training would raise.
    """
    run.student.to(run.training.device).eval()
    run.objective.to(run.training.device).eval()
    with torch.inference_mode():
        few = run.training.only(np.arange(min(len(run.training), 2)))
        for batch in few.in_order(2):
            run.objective(run.student(batch.inputs), batch)


def _labels(rows: Rows, seen: np.ndarray) -> np.ndarray:
    """int64 (joined rows,): the label of each that may be looked at, as the number of a logit where the classes
    correspond and the student has logits, which then stand for its labels too."""
    heads = {head for term in parse_objective(rows.objective) for head in OBJECTIVES.get(term.objective).heads}
    if rows.classes is None or "logits" not in heads or "logits" not in rows.outputs:
        return seen
    return np.where(seen == NO_LABEL, NO_LABEL, rows.classes[seen])


def _student(
    recipe: TrainRecipe, rows: Rows, labels: np.ndarray, balances: Mapping[str, Balance]
) -> tuple[Student, WeightedSum]:
    """`labels` is what `_labels` gives."""
    name = recipe.student or DEFAULT_STUDENTS[rows.reader.modality]
    backbone = build_backbone(name, rows.input)
    taught = rows.taught
    widths = {output: spec.shape[-1] for output, spec in {**taught.plain, **taught.specs}.items()}
    available = [*taught.plain, *(["labels"] if (labels != NO_LABEL).any() else [])]
    whole = {output: widths[output] for output in rows.outputs if output in taught.plain}
    only = None if taught.is_several else taught.given[0]
    dimensions = _dimensions(rows, backbone, whole, labels, only, balances)
    each = {one.teacher: _dimensions(rows, backbone, _widths(one), labels, one, balances) for one in taught.given}
    several = each if taught.is_several else None
    objective = make_objective(rows.objective, dimensions, available, several, cache=recipe.caches[0])
    heads = {head: widths[head] for head in objective.heads if head != "labels" and not is_layer(head)}
    shared: dict[str, str] = {}
    if "labels" in objective.heads and "logits" in heads and rows.classes is not None:
        shared["labels"] = "logits"  # one classifier learns from both, as in Hinton's distillation
    elif "labels" in objective.heads:
        heads["labels"] = len(rows.source.class_names)
    layers = [head for head in objective.heads if is_layer(head)]
    student = Student(backbone, heads, shared=shared, layers=layers)
    if recipe.init_from is not None:
        start_from(student, start_place(recipe.init_from, name), rows.source.class_names)
    return student, objective


def _dimensions(
    rows: Rows,
    backbone: Backbone,
    widths: Mapping[str, int],
    labels: np.ndarray,
    given: Given | None,
    balances: Mapping[str, Balance],
) -> Dimensions:
    """What objectives are told of one teacher; of no teacher there is no classifier."""
    every = np.full(len(rows.reader), NO_LABEL)
    every[rows.joined.rows] = labels
    classifier = None
    if given is not None and given.known_as("logits") in rows.outputs:
        classifier = given.reader.classifier(given.outputs["logits"])
        balance = balances.get(given.known_as("embedding"))
        if classifier is not None and balance is not None:
            classifier = balance.classifier(*classifier)
    layers = {} if given is None else {name: stored for name, stored in given.outputs.items() if is_layer(name)}
    outputs = {
        name: given.reader.outputs[stored]
        for name, stored in layers.items()
        if given is not None and given.known_as(name) in rows.outputs
    }
    return Dimensions(
        features=backbone.features,
        targets=widths,
        outputs=outputs,
        layers=backbone.layers() if outputs and isinstance(backbone, Layered) else {},
        labels=torch.from_numpy(every),
        classifier=classifier,
        labels_are_logits=_labels_are_logits(rows, given),
    )


def _labels_are_logits(rows: Rows, given: Given | None) -> bool:
    """Whether what `_labels` gives are numbers of this teacher's logits, or of the ensemble's."""
    if given is None or not rows.taught.is_several:
        return rows.classes is not None
    logits = given.reader.outputs.get(given.outputs.get("logits", ""))
    names = rows.source.class_names
    return logits is not None and logits.classes[: len(names)] == names


def _widths(given: Given) -> dict[str, int]:
    return {output: given.reader.outputs[stored].shape[-1] for output, stored in given.outputs.items()}


def _data(
    rows: Rows, student: Student, labels: np.ndarray, chosen: np.ndarray, loading: Mapping[str, Any]
) -> CachedData:
    joined = rows.joined
    return CachedData(
        rows.source,
        student.backbone.input,
        samples=joined.samples[chosen],
        labels=labels[chosen],
        rows=joined.rows[chosen],
        sample_of=joined.sample_of,
        reader=rows.reader,
        **loading,
    )


def _check_batches(recipe: TrainRecipe, students: Sequence[Student], training: CachedData, ranks: Ranks) -> None:
    """Raises UsageError for batches that a student cannot learn from, or that processes cannot share."""
    size = min(recipe.batch_size, len(training) * recipe.views_per_sample)
    norms = torch.nn.modules.batchnorm._BatchNorm
    for student in students:
        if size == 1 and any(isinstance(module, norms) for module in student.modules()):
            message = f"{student.backbone.name} has batch normalisation, which cannot learn from batches of one sample"
            raise UsageError(message, hint="raise --batch-size, or give more data")
    samples = recipe.batch_size // recipe.views_per_sample
    if samples % ranks.world or (len(training) < samples and len(training) % ranks.world):
        message = f"{ranks.world} processes cannot share batches of {min(samples, len(training))} samples equally"
        raise UsageError(message, hint=f"choose a --batch-size with a multiple of {ranks.world} samples")


def _settings(recipe: TrainRecipe, training: CachedData, machine: Machine) -> TrainSettings:
    per_epoch = training.steps_per_epoch(recipe.batch_size) / recipe.accumulate
    is_image = training.source.modality == "image"
    rate = _LEARNING_RATES[training.source.modality] if recipe.learning_rate is None else recipe.learning_rate
    on_gpu = training.device.type == "cuda"
    return TrainSettings(
        steps=recipe.steps or max(round(recipe.epochs * per_epoch), 1),
        batch_size=recipe.batch_size,
        accumulate=recipe.accumulate,
        learning_rate=rate,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        warmup=recipe.warmup,
        clip=recipe.clip,
        ema=recipe.ema,
        patience=recipe.patience,
        precision=recipe.precision or _precision(training.device),
        compile=machine.compile,
        channels_last=(on_gpu and is_image) if machine.channels_last is None else machine.channels_last,
        shard=machine.shard,
        seed=recipe.seed,
    )


def _precision(device: torch.device) -> str:
    """bfloat16 where a GPU computes in it, which keeps the range of float32; else float32."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
