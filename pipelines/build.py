"""From a recipe to the parts of a training run: rows, student, objective, settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featurecache.errors import UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.layers import is_layer
from featurecache.sources import Source
from featurecache.store.reader import CacheReader
from featurecache.store.stored_inputs import StoredInputs
from featurecache.types import NO_LABEL
from pipelines.events import default_device, default_workers
from pipelines.load import open_inputs, teacher_input
from pipelines.recipe import TrainRecipe
from pipelines.taught import Taught, open_teachers
from student.alignment import check_augmentation, check_lengths, check_same_length, check_stored
from student.balance import Balance
from student.data import CachedData
from student.given import Given, elsewhere
from student.join import Joined, join
from student.models.base import Backbone, Layered
from student.models.build import DEFAULT_STUDENTS, build_backbone
from student.models.student import Student
from student.objectives import OBJECTIVES
from student.objectives.base import Dimensions
from student.objectives.weighted import WeightedSum, make_objective, parse_objective
from student.selection import label_map, labelled_rows, validation_rows
from student.settings import TrainSettings
from student.targets import Residency
from student.views import Views

__all__ = ["Rows", "TrainingRun", "build", "open_rows", "try_once"]

_LEARNING_RATES = {"image": 1e-3, "text": 5e-4}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a cache that a recipe may use, joined with their samples."""

    reader: CacheReader
    source: Source
    stored: StoredInputs | None
    """Where the inputs come from instead, if the cache holds them and no data are named."""
    input: ImageInput | TextInput
    views: Views
    digest: str
    objective: str
    """The recipe's, or the default for what the cache holds."""
    taught: Taught
    """By which teachers."""
    outputs: tuple[str, ...]
    """Teacher outputs that the objective needs, "TEACHER/embedding" where there are several."""
    joined: Joined
    keys: Sequence[str]
    """Of the joined rows."""
    classes: np.ndarray | None
    """The teacher's logit for each class of the data, or None if they do not correspond."""


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


def open_rows(recipe: TrainRecipe) -> Rows:
    """Open the cache and the data and join them. Raises UsageError, IncompleteError, SourceError."""
    cache, taught = open_teachers(recipe)
    reader = taught.reader
    network_input = teacher_input(cache, reader, img_size=recipe.img_size, max_length=recipe.max_length)
    source, stored = open_inputs(reader, recipe.data, network_input)
    objective = recipe.objective or _default_objective(taught, source)
    outputs = taught.needed(objective)
    own = _of_first(taught, outputs)
    check_same_length(reader, own, network_input)
    views = _views(recipe, taught.views(outputs))  # where labels alone teach, those of every output
    if views.count > 1 and reader.stored_views is not None:
        reader.stored_views.check_fits(network_input)
    taught.check(outputs, views=views.count)
    if recipe.check_inputs != "off":
        for one in taught.given:
            names = tuple(one.stored(taught.read(outputs)).values())
            if names or not taught.is_several:
                check_augmentation(one.reader, names, views=views.count)
        if stored is not None:
            check_stored(reader, own, stored)
    others = elsewhere(taught.given, taught.read(outputs))
    joined = join(
        reader,
        source,
        own,
        views=views.count,
        missing=recipe.missing,
        max_invalid=recipe.max_invalid,
        others=others,
    )
    if stored is not None:
        check_lengths(reader, own, stored, joined.rows)
    logits = next((spec for name, spec in {**taught.plain, **taught.specs}.items() if _is_logits(name)), None)
    return Rows(
        reader=reader,
        source=source,
        stored=stored,
        input=network_input,
        views=views,
        digest=taught.digests[0],
        objective=objective,
        taught=taught,
        outputs=outputs,
        joined=joined,
        keys=[source.keys[sample] for sample in joined.samples],
        classes=label_map(source.class_names, logits.classes if logits else (), recipe.class_map),
    )


def build(
    recipe: TrainRecipe,
    rows: Rows,
    *,
    device: str | None = None,
    workers: int | None = None,
    targets: Residency = "auto",
) -> TrainingRun:
    """Make the student and its data. Raises UsageError for an objective that this cache cannot serve."""
    seen = np.where(labelled_rows(rows.keys, rows.joined.labels, recipe.labels), rows.joined.labels, NO_LABEL)
    # rows without a label teach nothing where labels are all that the objective looks at
    usable = np.ones(len(rows.keys), bool) if rows.outputs else seen != NO_LABEL
    held_out = validation_rows(rows.keys, recipe.validation)
    chosen = default_device() if device is None else device
    training_rows = rows.joined.rows[usable & ~held_out]
    balances: dict[str, Balance] = {}
    if training_rows.size:
        views, where = rows.views.count, torch.device(chosen)
        balances = rows.taught.balances(rows.outputs, training_rows, views=views, device=where)
    torch.manual_seed(recipe.seed)
    labels = _labels(rows, seen)
    student, objective = _student(recipe, rows, labels, balances)
    loading = {
        "outputs": _of_first(rows.taught, rows.outputs),
        "targets": rows.taught.targets(rows.outputs, rows.objective, balances) if rows.outputs else None,
        "residency": targets,
        "views": rows.views,
        "stored": rows.stored,
        "check_inputs": recipe.check_inputs,
        "bank_rows": objective.bank_rows,
        "shuffle": recipe.shuffle,
        "device": chosen,
        "workers": default_workers(chosen) if workers is None else workers,
    }
    training = _data(rows, student, labels, usable & ~held_out, loading)
    validation = _data(rows, student, labels, usable & held_out, loading)
    has_batch_norm = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in student.modules())
    if has_batch_norm and min(recipe.batch_size, len(training)) == 1:
        message = f"{student.backbone.name} has batch normalisation, which cannot learn from batches of one sample"
        raise UsageError(message, hint="raise --batch-size, or give more data")
    if not len(training):
        raise UsageError("no row is left to train on", hint="lower --validation, or give more data or --labels")
    return TrainingRun(student, objective, training, validation, _settings(recipe, training), balances)


def _views(recipe: TrainRecipe, stored: int) -> Views:
    """Raises UsageError for more views than the cache holds, or batches too small for them."""
    if (recipe.views or 1) > stored:
        hint = f"add some with `fc extend {recipe.caches[0]} --views {recipe.views}`, or ask for fewer"
        raise UsageError(f"the cache holds {stored} views of each sample, not {recipe.views}", hint=hint)
    if recipe.views_per_sample > recipe.batch_size:
        message = f"{recipe.views_per_sample} views of a sample do not fit into batches of {recipe.batch_size}"
        raise UsageError(message, hint="raise --batch-size")
    return Views(recipe.views or stored, recipe.views_per_sample)


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
    backbone = build_backbone(name, rows.input, init_from=recipe.init_from)
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
    return Student(backbone, heads, shared=shared, layers=layers), objective


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


def _of_first(taught: Taught, outputs: Sequence[str]) -> tuple[str, ...]:
    """Those of these outputs that the first cache holds, by its own names for them."""
    read = taught.read(outputs)
    return tuple(name for one in taught.given if one.row_of is None for name in one.stored(read).values())


def _is_logits(output: str) -> bool:
    return output.rpartition("/")[2] == "logits"


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


def _settings(recipe: TrainRecipe, training: CachedData) -> TrainSettings:
    per_epoch = training.steps_per_epoch(recipe.batch_size)
    rate = _LEARNING_RATES[training.source.modality] if recipe.learning_rate is None else recipe.learning_rate
    return TrainSettings(
        steps=recipe.steps or max(round(recipe.epochs * per_epoch), 1),
        batch_size=recipe.batch_size,
        learning_rate=rate,
        weight_decay=recipe.weight_decay,
        warmup=recipe.warmup,
        clip=recipe.clip,
        precision=recipe.precision,
        seed=recipe.seed,
    )


def _default_objective(taught: Taught, source: Source) -> str:
    """All that the plain outputs of teachers and the data's labels can serve, each with weight 1."""
    serves = {"logits": "kl", "embedding": "align-uniform"}
    terms = [objective for output, objective in serves.items() if output in taught.names]
    labelled = ["ce"] if (source.labels != NO_LABEL).any() else []
    return ",".join([*terms, *labelled])
