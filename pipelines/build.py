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
from pipelines.load import open_inputs, open_sealed, open_split, teacher_input
from pipelines.recipe import TrainRecipe
from student.alignment import check_augmentation, check_lengths, check_same_length, check_stored
from student.data import CachedData
from student.join import Joined, join
from student.models.base import Backbone, Layered
from student.models.build import DEFAULT_STUDENTS, build_backbone
from student.models.student import Student
from student.objectives.base import Dimensions
from student.objectives.weighted import WeightedSum, make_objective, parse_objective, term_needs
from student.selection import label_map, labelled_rows, validation_rows
from student.trainer import TrainSettings
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
    outputs: tuple[str, ...]
    """Teacher outputs that the objective needs."""
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


def open_rows(recipe: TrainRecipe) -> Rows:
    """Open the cache and the data and join them. Raises UsageError, IncompleteError, SourceError."""
    cache, digest = open_sealed(recipe.cache)
    reader = open_split(cache, recipe.split)
    network_input = teacher_input(cache, reader, img_size=recipe.img_size, max_length=recipe.max_length)
    source, stored = open_inputs(reader, recipe.data, network_input)
    objective = recipe.objective or _default_objective(reader, source)
    wanted = {need for term in parse_objective(objective) for need in term_needs(term, reader.outputs)}
    outputs = tuple(name for name in reader.outputs if name in wanted)
    check_same_length(reader, outputs, network_input)
    views = _views(recipe, reader.views(outputs or None))  # where labels alone teach, those of every output
    if views.count > 1 and reader.stored_views is not None:
        reader.stored_views.check_fits(network_input)
    if recipe.check_inputs != "off":
        check_augmentation(reader, outputs, views=views.count)
        if stored is not None:
            check_stored(reader, outputs, stored)
    joined = join(reader, source, outputs, views=views.count, missing=recipe.missing, max_invalid=recipe.max_invalid)
    if stored is not None:
        check_lengths(reader, outputs, stored, joined.rows)
    logits = reader.outputs.get("logits")
    return Rows(
        reader=reader,
        source=source,
        stored=stored,
        input=network_input,
        views=views,
        digest=digest,
        objective=objective,
        outputs=outputs,
        joined=joined,
        keys=[source.keys[sample] for sample in joined.samples],
        classes=label_map(source.class_names, logits.classes if logits else (), recipe.class_map),
    )


def build(recipe: TrainRecipe, rows: Rows, *, device: str | None = None, workers: int | None = None) -> TrainingRun:
    """Make the student and its data. Raises UsageError for an objective that this cache cannot serve."""
    seen = np.where(labelled_rows(rows.keys, rows.joined.labels, recipe.labels), rows.joined.labels, NO_LABEL)
    torch.manual_seed(recipe.seed)
    student, objective = _student(recipe, rows, seen)
    labels = rows.classes[seen] if rows.classes is not None and student.shared else seen
    labels = np.where(seen == NO_LABEL, NO_LABEL, labels)
    # rows without a label teach nothing where labels are all that the objective looks at
    usable = np.ones(len(rows.keys), bool) if rows.outputs else seen != NO_LABEL
    held_out = validation_rows(rows.keys, recipe.validation)
    chosen = device or default_device()
    loading = {
        "outputs": rows.outputs,
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
    return TrainingRun(student, objective, training, validation, _settings(recipe, training))


def _views(recipe: TrainRecipe, stored: int) -> Views:
    """Raises UsageError for more views than the cache holds, or batches too small for them."""
    if (recipe.views or 1) > stored:
        hint = f"add some with `fc extend {recipe.cache} --views {recipe.views}`, or ask for fewer"
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
    run.objective.to(run.training.device)
    with torch.inference_mode():
        few = run.training.only(np.arange(min(len(run.training), 2)))
        for batch in few.in_order(2):
            run.objective(run.student(batch.inputs), batch)


def _student(recipe: TrainRecipe, rows: Rows, seen: np.ndarray) -> tuple[Student, WeightedSum]:
    """`seen` is int64 (joined rows,): the label of each that may be looked at."""
    name = recipe.student or DEFAULT_STUDENTS[rows.reader.modality]
    backbone = build_backbone(name, rows.input, init_from=recipe.init_from)
    widths = {output: rows.reader.outputs[output].shape[-1] for output in rows.outputs}
    available = [*rows.reader.outputs, *(["labels"] if (seen != NO_LABEL).any() else [])]
    objective = make_objective(rows.objective, _dimensions(rows, backbone, widths, seen), available, cache=recipe.cache)
    heads = {head: widths[head] for head in objective.heads if head != "labels" and not is_layer(head)}
    shared: dict[str, str] = {}
    if "labels" in objective.heads and "logits" in heads and rows.classes is not None:
        shared["labels"] = "logits"  # one classifier learns from both, as in Hinton's distillation
    elif "labels" in objective.heads:
        heads["labels"] = len(rows.source.class_names)
    layers = [head for head in objective.heads if is_layer(head)]
    return Student(backbone, heads, shared=shared, layers=layers), objective


def _dimensions(rows: Rows, backbone: Backbone, widths: Mapping[str, int], seen: np.ndarray) -> Dimensions:
    labels = np.full(len(rows.reader), NO_LABEL)
    labels[rows.joined.rows] = seen
    classifier = rows.reader.classifier("logits") if "logits" in rows.outputs else None
    outputs = {name: rows.reader.outputs[name] for name in rows.outputs if is_layer(name)}
    return Dimensions(
        features=backbone.features,
        targets=widths,
        outputs=outputs,
        layers=backbone.layers() if outputs and isinstance(backbone, Layered) else {},
        labels=torch.from_numpy(labels),
        classifier=classifier,
    )


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


def _default_objective(reader: CacheReader, source: Source) -> str:
    """All that the cache's plain outputs and the data's labels can serve, each with weight 1."""
    serves = {"logits": "kl", "embedding": "align-uniform"}
    terms = [objective for output, objective in serves.items() if output in reader.outputs]
    labelled = ["ce"] if (source.labels != NO_LABEL).any() else []
    return ",".join([*terms, *labelled])
