"""`fc fit-teacher`: a pretrained or fresh network and labelled data in, a task teacher in a folder out."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.sources import Source, open_data
from featurecache.types import Json
from pipelines.events import Advance, Message, Run, default_device, default_workers
from pipelines.readable import readable_rows

if TYPE_CHECKING:
    from torch import nn

    from student.data import CachedData
    from student.objectives.weighted import WeightedSum
    from student.settings import TrainSettings

__all__ = ["fit_teacher"]


def fit_teacher(
    *,
    model: str,
    data: str | Sequence[str],
    out: Path | str,
    mode: str = "ft",
    epochs: float = 4.0,
    batch_size: int = 32,
    learning_rate: float | None = None,
    labels: int | None = None,
    validation: float = 0.1,
    img_size: int | None = None,
    max_length: int | None = None,
    weights: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    device: str | None = None,
    precision: str = "float32",
    text_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
) -> Run[Json]:
    """Train all weights by cross-entropy: from pretrained ones (`ft`) or from random ones (`fr`).

    The folder that is left is in timm's or transformers' own format, class names included. Returns out, classes, steps,
    parameters and the accuracy on the validation part. Raises UsageError, SourceError, TeacherError.
    """
    import torch

    from featurecache.teachers import resolve_name
    from student.objectives.base import Dimensions
    from student.objectives.weighted import make_objective
    from student.settings import TrainSettings

    _check(mode, Path(out), weights=weights, epochs=epochs, batch_size=batch_size)
    columns: dict[str, Any] = {"text_column": text_column, "label_column": label_column, "image_column": image_column}
    source = open_data(data, splits=["train"], limit=limit, **columns)["train"]
    if not source.class_names:
        raise UsageError("a task teacher needs labels, and this data set has none")
    full = resolve_name(model)
    yield Message(
        f"model {full}, {len(source.class_names)} classes, {'fine-tuned' if mode == 'ft' else 'from scratch'}"
    )
    torch.manual_seed(seed)
    network = _network(full, source, mode=mode, img_size=img_size, max_length=max_length, weights=weights)
    chosen = device or default_device()
    loading = {"device": chosen, "workers": default_workers(chosen) if workers is None else workers}
    training, held_out = yield from _data(source, network.input, labels, validation, loading)
    _check_batches(network, min(batch_size, len(training)))
    settings = TrainSettings(
        steps=max(round(epochs * training.steps_per_epoch(batch_size)), 1),
        batch_size=batch_size,
        learning_rate=learning_rate or _default_rate(mode, source),
        weight_decay=0.01,
        warmup=0.1,
        precision=precision,
        seed=seed,
    )
    objective = make_objective("ce", Dimensions(features=1, targets={}), ["labels"])
    yield from _train(network, objective, training, held_out, settings)
    accuracy = _accuracy(network, held_out, batch_size)
    _publish(network, Path(out))
    return {
        "out": str(out),
        "teacher": f"--teacher {out}",
        "classes": len(source.class_names),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": settings.steps,
        "rows": {"training": len(training), "validation": len(held_out)},
        "validation_accuracy": accuracy,
    }


def _check(mode: str, out: Path, *, weights: str | None, epochs: float, batch_size: int) -> None:
    if mode not in ("ft", "fr"):
        raise UsageError(f"unknown mode {mode!r}", hint="ft fine-tunes pretrained weights, fr begins with random ones")
    if mode == "fr" and weights:
        raise UsageError("--weights cannot be used with --mode fr, which begins with random ones", hint="--mode ft")
    if not 0 < epochs < math.inf or batch_size < 1:
        given = f"{epochs:g} of {batch_size} samples"
        raise UsageError(f"training needs more than 0 epochs of batches, and an end, not {given}")
    if out.is_file():
        raise UsageError(f"{out} is a file", hint="give --out a folder that is not there yet")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint="choose another --out")


def _check_batches(network: "nn.Module", batch_size: int) -> None:
    from torch import nn

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if batch_size == 1 and any(isinstance(module, norms) for module in network.modules()):
        hint = "give a larger --batch-size, and two samples at least"
        raise UsageError("batch normalisation cannot be trained on batches of one sample", hint=hint)


def _publish(network: Any, out: Path) -> None:
    partial = out.resolve().with_name(f"{out.resolve().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    network.save(partial)
    partial.rename(out)


def _default_rate(mode: str, source: Source) -> float:
    if mode == "fr":
        return 1e-3
    return 1e-4 if source.modality == "image" else 5e-5


def _data(
    source: Source,
    network_input: ImageInput | TextInput,
    labels: int | None,
    validation: float,
    loading: Mapping[str, Any],
) -> "Run[tuple[CachedData, CachedData]]":
    import numpy as np

    from student.data import CachedData
    from student.selection import labelled_rows, validation_rows

    held_out = validation_rows(source.keys, validation)
    known = labelled_rows(source.keys, source.labels, labels)
    workers = loading["workers"]
    known[known] = yield from readable_rows(
        source, network_input, np.flatnonzero(known), workers=workers, what="labelled samples"
    )
    parts = [np.flatnonzero(known & ~held_out), np.flatnonzero(known & held_out)]
    if not parts[0].size:
        raise UsageError("no labelled sample is left to train on", hint="lower --validation, or give more data")
    training, validating = (
        CachedData(source, network_input, samples=rows, labels=source.labels[rows].astype(np.int64), **loading)
        for rows in parts
    )
    return training, validating


def _train(
    network: "nn.Module",
    objective: "WeightedSum",
    training: "CachedData",
    held_out: "CachedData",
    settings: "TrainSettings",
) -> Run[None]:
    from student.trainer import Step, train

    for event in train(network, objective, training, settings, validation=held_out):
        if isinstance(event, Step) and (event.step % 5 == 0 or event.step == settings.steps):
            facts = {"loss": f"{float(event.losses['loss']):.3f}"}
            yield Advance("fit", event.step, settings.steps, "steps", facts)


def _accuracy(network: "nn.Module", data: "CachedData", batch_size: int) -> float | None:
    import torch

    hits = total = 0
    with torch.inference_mode():
        for batch in data.in_order(batch_size):
            hits += int((network(batch.inputs)["labels"].argmax(1) == batch.labels).sum())
            total += len(batch.labels)
    return round(hits / total, 4) if total else None


def _network(
    full: str, source: Source, *, mode: str, img_size: int | None, max_length: int | None, weights: str | None
) -> Any:
    kind, _, name = full.partition(":")
    fitting = {"image": "timm", "text": "hf"}[source.modality]
    if kind != fitting:
        hint = "timm:NAME for images, hf:FOLDER or minilm for texts"
        raise UsageError(f"fit-teacher cannot fit {full} on {source.modality}s", hint=hint)
    if kind == "hf" and weights:
        hint = "put the file beside the model's config.json as model.safetensors, and give that folder as --model"
        raise UsageError("--weights can only be used with a model for images", hint=hint)
    from pipelines.classifiers import TextClassifier, TimmClassifier

    pretrained = mode == "ft"
    if kind == "timm":
        return TimmClassifier(name, source.class_names, pretrained=pretrained, img_size=img_size, weights=weights)
    return TextClassifier(name, source.class_names, pretrained=pretrained, max_length=max_length)
