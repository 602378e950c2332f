"""`fc evaluate`: a trained student beside the teacher that it learned from, on data neither was fitted to."""

import contextlib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featurecache.errors import UsageError
from featurecache.layers import is_layer
from featurecache.sources import Source
from featurecache.types import NO_LABEL, Json
from pipelines.events import Message, Run, default_device, default_workers
from pipelines.run_dir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

    from featurecache.store.reader import Cache, CacheReader
    from pipelines.judged import Several
    from student.data import CachedData
    from student.join import Elsewhere
    from student.models.student import Student

__all__ = ["evaluate_run"]

_FEATURE_SCORES = ("neighbours", "linear", "teacher_neighbours", "teacher_linear")
_FEWEST_BANK_ROWS = 20
_MOST_BANK_ROWS = 10_000
"""Training rows that features are judged with: enough for a steady number, few enough for any machine."""


class _Loading(NamedTuple):
    device: str
    workers: int
    max_invalid: float


def evaluate_run(
    *,
    run: Path | str,
    cache: Path | str | Sequence[Path | str] | None = None,
    split: str | None = None,
    data: Sequence[str] | None = None,
    features: bool = True,
    max_invalid: float = 0.01,
    device: str | None = None,
    workers: int | None = None,
    batch_size: int = 256,
) -> Run[Json]:
    """Compare the student of a run with its teacher on a split of the cache: "test" or "val" where there is one.

    A cache without either is judged on the validation part of "train". Returns accuracy, teacher_accuracy, agreement,
    kl, cosine (see `student.evaluate.compare`), and with `features` neighbours and linear for the features of both;
    null where labels or outputs are missing. Of several teachers these are about the first, or its ensemble, and
    "teachers" has teacher_accuracy, agreement, kl and cosine for each. Cosines are of balanced embeddings where the
    student learned those. All are kept in the run's scores.json too. Raises UsageError, SourceError.
    """
    from pipelines.judged import Several
    from pipelines.load import open_split
    from student.evaluate import compare, run_student
    from student.export import load_student

    directory = RunDir(run)
    recipe = directory.recipe()
    student, facts = load_student(directory.student)
    caches = _open_caches(cache, recipe["cache"])
    opened = caches[0]
    judged = split or next((name for name in ("test", "val") if _all_have(caches, name)), recipe["split"])
    chosen = device or default_device()
    loading = _Loading(chosen, default_workers(chosen) if workers is None else workers, max_invalid)
    given = data or recipe["data"]
    outside, is_fair = judged != recipe["split"], True
    reader = open_split(opened, judged)
    names = _targets(reader, facts["targets"])
    several = Several.open(directory.student, facts, caches, judged)
    held_out = _open(student, reader, names, given, loading, several.others)
    _check_classes(held_out.source, facts["class_names"])
    if not outside:
        held_out = _part(held_out, recipe["validation"], validation=True)
        held_out, is_fair = _unseen(held_out, reader, names)
        if not is_fair:
            yield Message("the probe was fitted on the labels of these rows, so its accuracy on them says nothing")
    if (logits := names.get("logits")) and reader.output_part(logits).kind == "probe":
        yield Message(f"the teacher's logits are those of {reader.output_part(logits).prefix}, a head on its embedding")
    yield Message(f"{len(held_out):,} rows of {judged}" + ("" if outside else ", its validation part"))

    found = several.plain(run_student(student, held_out, batch_size=batch_size))
    read = reader.read(held_out.rows, outputs=list(names.values()))
    targets = several.targets({output: read[name] for output, name in names.items()}, held_out.rows)
    classes = None if facts["classes"] is None else np.array(facts["classes"])
    scores: dict[str, Json] = {
        "split": judged,
        "rows": len(held_out),
        **compare(found, targets, held_out.labels, classes),
    }
    if not is_fair:
        scores["teacher_accuracy"] = None
    if several.given:
        scores["teachers"] = several.scores(found, held_out.rows, held_out.labels, held_out.source.class_names)

    if not features:
        scores |= dict.fromkeys(_FEATURE_SCORES)
    else:
        learned_from = open_split(opened, recipe["split"])
        bank_names = _targets(learned_from, facts["targets"])
        bank = _open(student, learned_from, bank_names, given, loading)
        bank = _part(bank, recipe["validation"], validation=False)
        stored = bank_names.get("embedding")
        yield from _judge_features(scores, student, found, targets, bank, held_out, batch_size, several, stored=stored)
    scores["parameters"] = sum(parameter.numel() for parameter in student.parameters())
    scores["student"] = student.backbone.name
    scores["teacher"] = reader.teacher_part(next(iter(names.values()))).facts["teacher"]
    with contextlib.suppress(OSError):  # somebody else's run, which may be read only
        directory.keep_scores(judged, scores)
    return scores


def _all_have(caches: "Sequence[Cache]", split: str) -> bool:
    from pipelines.load import has_outputs

    return all(has_outputs(cache, split) for cache in caches)


def _open_caches(given: Path | str | Sequence[Path | str] | None, recorded: str | Sequence[str]) -> "list[Cache]":
    from pipelines.load import open_sealed

    learned = [recorded] if isinstance(recorded, str) else list(recorded)
    places = [given] if isinstance(given, str | Path) else list(given or learned)
    if len(places) != len(learned):
        message = f"this student learned from {len(learned)} caches, and {len(places)} were given"
        raise UsageError(message, hint="give each of them with --cache, in the order of training")
    try:
        return [open_sealed(str(place))[0] for place in places]
    except UsageError as error:
        if given:
            raise
        raise UsageError(error.message, hint="if it was moved, say where it is now with --cache") from None


def _targets(reader: "CacheReader", learned: Mapping[str, str]) -> dict[str, str]:
    """Output to the name it can be read under here: what the student learned from, whatever was added since; no layers.

    Raises UsageError if this split does not have it.
    """
    found = {output: name for output, name in _of_teacher(reader, learned).items() if not is_layer(output)}
    for output, made_by in learned.items():
        if is_layer(output):  # nothing is judged by these
            continue
        name = reader.named(output, made_by)
        if name is None:
            message = f"split {reader.split!r} has no {output} of the teacher that this student learned from"
            raise UsageError(message, hint="extract this split with the same teacher, or give another --split")
        found[output] = name
    return found


def _of_teacher(reader: "CacheReader", learned: Mapping[str, str]) -> Mapping[str, str]:
    """Outputs, own names to those in the reader, of the teacher that made what was learned; else of the first."""
    each = list(reader.by_teacher.values())
    makers = set(learned.values())
    return next((names for names in each if makers & {reader.made_by(name) for name in names.values()}), each[0])


def _unseen(data: "CachedData", reader: "CacheReader", names: Mapping[str, str]) -> "tuple[CachedData, bool]":
    """The rows whose labels no probe was fitted on, and whether there are any; all rows where there are none."""
    if "logits" not in names:
        return data, True
    unseen = np.flatnonzero(~reader.labelled(names["logits"])[data.rows])
    return (data.only(unseen), True) if unseen.size else (data, False)


def _open(
    student: "Student",
    reader: "CacheReader",
    names: Mapping[str, str],
    data: Sequence[str] | None,
    loading: _Loading,
    others: "Sequence[Elsewhere]" = (),
) -> "CachedData":
    from pipelines.load import open_inputs
    from student.data import CachedData
    from student.join import join

    source, stored = open_inputs(reader, data, student.backbone.input)
    outputs, most = list(names.values()), loading.max_invalid
    joined = join(reader, source, outputs, missing="skip", max_invalid=most, others=others)
    return CachedData(
        source,
        student.backbone.input,
        samples=joined.samples,
        labels=joined.labels,
        rows=joined.rows,
        sample_of=joined.sample_of,
        reader=reader,
        stored=stored,
        residency="stream",  # for one pass over rows that are chosen only now
        device=loading.device,
        workers=loading.workers,
    )


def _check_classes(source: Source, trained: Sequence[str]) -> None:
    """Class numbers mean the same as in training. Raises UsageError."""
    here = list(source.class_names)
    if here and trained and here != list(trained):
        message = f"these classes are not those that the student learned: {reprlib.repr(here)}, {reprlib.repr(trained)}"
        raise UsageError(message, hint="name all splits, so that they agree on classes: --data train=A --data test=B")


def _part(data: "CachedData", fraction: float, *, validation: bool) -> "CachedData":
    """The rows of a training split that were, or were not, held out for validation."""
    from student.selection import validation_rows

    held_out = validation_rows([data.source.keys[sample] for sample in data.samples], fraction)
    chosen = np.flatnonzero(held_out == validation)
    if not chosen.size:
        raise UsageError("the split has no validation part to judge on", hint="extract a test split as well")
    return data.only(chosen)


def _judge_features(
    scores: dict[str, Json],
    student: "Student",
    found: "Mapping[str, Tensor]",
    targets: "Mapping[str, object]",
    bank: "CachedData",
    held_out: "CachedData",
    batch_size: int,
    several: "Several",
    *,
    stored: str | None = None,
) -> Run[None]:
    """Add nearest neighbours and linear probes of the student's features and of the teacher's embedding.

    `stored` is the name of that embedding among the bank's outputs.
    """
    import torch

    from student.evaluate import Features, feature_scores, run_student
    from student.selection import validation_rows

    scores |= dict.fromkeys(_FEATURE_SCORES)
    labelled, judged = np.flatnonzero(bank.labels != NO_LABEL), np.flatnonzero(held_out.labels != NO_LABEL)
    bank = bank.only(labelled[:: max(-(-labelled.size // _MOST_BANK_ROWS), 1)])
    validation = validation_rows([bank.source.keys[sample] for sample in bank.samples], 0.15)
    if labelled.size < _FEWEST_BANK_ROWS or not judged.size or not validation.any():
        yield Message("too few labels to judge features by")
        return
    yield Message(f"features judged with {len(bank):,} labelled training rows")
    classes = len(bank.source.class_names)
    vectors = {"": (run_student(student, bank, batch_size=batch_size)["features"], found["features"])}
    embedding = targets.get("embedding")
    if isinstance(embedding, torch.Tensor) and bank.reader is not None and stored:
        of_teacher = bank.reader.read(bank.rows, outputs=[stored])[stored]
        assert isinstance(of_teacher, torch.Tensor)
        vectors["teacher_"] = (several.balanced(of_teacher), embedding)
    for whose, (of_bank, of_judged) in vectors.items():
        result = feature_scores(
            Features(of_bank, bank.labels),
            Features(of_judged[judged], held_out.labels[judged]),
            validation,
            classes=classes,
        )
        scores |= {f"{whose}{name}": value for name, value in result.items()}
