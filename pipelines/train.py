"""`fc train-student`: a cache in, trained students and their run directories out; no teacher is loaded."""

import collections
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurecache.errors import FeatureCacheError, UsageError
from featurecache.sources import location
from featurecache.types import Json, Modality
from pipelines.events import Message, Run, default_device
from pipelines.events import finish as run_to_the_end
from pipelines.machine import Machine
from pipelines.metrics import follow
from pipelines.recipe import TrainRecipe
from pipelines.run_dir import RunDir
from pipelines.trackers import check_trackers

if TYPE_CHECKING:
    from pipelines.build import TrainingRun
    from pipelines.rows import Rows
    from student.balance import Balance
    from student.parallel import Ranks

__all__ = ["train_student"]

_BALANCE = "balance.safetensors"
"""How targets are balanced, from the beginning of a run."""


def train_student(
    *,
    student: str | Sequence[str] | None = None,
    out: Path | str | None = None,
    device: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    workers: int | None = None,
    targets: Literal["auto", "device", "stream"] = "auto",
    compile: bool = False,
    channels_last: bool | None = None,
    shard: bool = False,
    **recipe: Any,
) -> Run[Json]:
    """Train a student from a cache, or several from the same batches; `recipe` has the fields of `TrainRecipe`.

    Returns the run's summary; for several students {"runs": [their summaries]}. Each has a run directory of its own,
    below `out` where there are several. `track` has names of trackers (`open_trackers`). What is said of the machine is
    as `Machine` has it. In a process that torchrun started it trains together with the others; only the first of them
    tells anything and writes run directories.

    Raises UsageError, IncompleteError for a cache that is not sealed, and IdentityError for data that the teacher did
    not see, or for a run that was begun with other settings.
    """
    from student.parallel import Ranks

    caches = recipe.get("cache", "./cache")
    named = str(caches) if isinstance(caches, str | Path) else tuple(map(str, caches))
    students = [student] if student is None or isinstance(student, str) else list(student)
    if len(set(students)) < len(students) or not students:
        raise UsageError("each --student is given once", hint="train another one in a run of its own")
    given = TrainRecipe(**{**recipe, "cache": named})
    machine = Machine(workers=workers, targets=targets, compile=compile, channels_last=channels_last, shard=shard)
    with contextlib.closing(Ranks.from_environment(device or default_device())) as ranks:
        recipes = [replace(given, student=name) for name in students]
        run = _train(recipes, ranks, machine, Path(out) if out else None, resume=resume, track=track)
        summaries = (yield from run) if ranks.is_first else run_to_the_end(run)
    return summaries[0] if len(students) == 1 else {"runs": summaries}


def _train(
    recipes: Sequence[TrainRecipe],
    ranks: "Ranks",
    machine: Machine,
    out: Path | None,
    *,
    resume: bool,
    track: Sequence[str],
) -> Run[list[Json]]:
    from pipelines.build import build_together, open_rows, try_once
    from student.balance import load_balances
    from student.checkpoint import has_checkpoint
    from student.trainee import Trainee
    from student.trainer import train_together

    recipe = recipes[0]
    check_trackers(track)
    rows = open_rows(recipe)
    yield from _left_out(rows)
    runs = [RunDir(path) for path in _places(out, recipes, rows.reader.modality, resume=resume)]
    begun = load_balances(runs[0].path / _BALANCE) if resume else {}
    built = build_together(recipes, rows, ranks, machine, begun or None)
    for each in built:
        try_once(each)
        yield Message(f"student {each.student.backbone.name}, objective {rows.objective}")
    yield from map(Message, built[0].objective.notes)
    if resume and recipe.shuffle == "auto":
        built[0].training.shuffle = _shuffle_begun(runs[0].path) or built[0].training.shuffle
    records = [_record(each, rows, one) for each, one in zip(recipes, built, strict=True)]
    ranks.wait()  # all have looked for a free name
    _begin(runs, records, built[0].balances, ranks, resume=resume)
    yield from _told(recipe, rows, built, runs, ranks)
    left = [(run, one) for run, one in zip(runs, built, strict=True) if not (resume and run.is_finished())]
    if not left:
        yield Message("it was finished before: nothing to do")
        return [run.summary() for run in runs]
    trainees = []
    for run, one in left:
        trainee = Trainee(
            one.student,
            one.objective,
            one.settings,
            ranks=ranks,
            checkpoint=run.checkpoint,
            randomness=one.randomness,
        )
        if resume and has_checkpoint(run.checkpoint):
            trainee.resume()
            yield Message(f"{run.path} goes on from step {trainee.done:,}")
        elif resume:
            yield Message(f"{run.path} has no checkpoint yet and begins anew")
        trainees.append(trainee)
    loop = train_together(trainees, built[0].training, built[0].settings, validation=built[0].validation)
    if ranks.is_first:
        results = yield from follow(loop, [run for run, _ in left], trainees, track=track)
    else:
        collections.deque(loop, maxlen=0)
        results = [{} for _ in left]
    for (run, one), trainee, result in zip(left, trainees, results, strict=True):
        _finish(run, rows, one, {**result, "steps": trainee.done}, ranks)
    ranks.wait()
    return [run.summary() for run in runs]


def _begin(
    runs: Sequence[RunDir], records: Sequence[Json], balances: "Mapping[str, Balance]", ranks: "Ranks", *, resume: bool
) -> None:
    """Make the run directories, or take them up. Raises what `RunDir.create` does, on every rank."""
    from student.balance import save_balances

    failure: FeatureCacheError | None = None
    if ranks.is_first:
        try:
            for run, record in zip(runs, records, strict=True):
                RunDir.create(run.path, record, resume=resume)
                if balances and not (run.path / _BALANCE).exists():
                    save_balances(run.path / _BALANCE, balances)
        except FeatureCacheError as error:
            failure = error
    if not ranks.first_says(failure is None):
        raise failure or UsageError("the first process could not begin the run")


def _places(out: Path | None, recipes: Sequence[TrainRecipe], modality: Modality, *, resume: bool) -> list[Path]:
    """The directory of each run."""
    from student.models.build import DEFAULT_STUDENTS

    students = [recipe.student or DEFAULT_STUDENTS[modality] for recipe in recipes]
    names = [name.removeprefix("timm:").replace(":", "-") for name in students]
    if out is None:
        return [RunDir.named(Path("runs"), name, resume=resume) for name in names]
    return [out] if len(names) == 1 else [out / name for name in names]


def _told(
    recipe: TrainRecipe, rows: "Rows", built: "Sequence[TrainingRun]", runs: Sequence[RunDir], ranks: "Ranks"
) -> Run[None]:
    """What a person should know before it begins."""
    one = built[0]
    where = ", ".join(str(run.path) for run in runs)
    yield Message(f"run {where}: {len(one.training):,} rows to train on, {len(one.validation):,} to validate")
    yield from _told_of_teachers(recipe, rows, one)
    if rows.stored is not None:
        what = f"images of {rows.stored.size} pixels" if rows.stored.modality == "image" else "tokens"
        yield Message(f"inputs come from the cache, as {what}; --data would read the samples themselves")
    if rows.views.count > 1:
        yield Message(f"{rows.views.count} views of each sample, {rows.views.per_sample} in each epoch")
    if one.training.shuffle == "blocks":
        yield Message("rows are shuffled in groups of blocks, and read one group ahead: not all need fit in memory")
    if ranks.world > 1:
        how = "share out the student's weights" if one.settings.shard else "have a copy of the student each"
        yield Message(f"{ranks.world} processes {how}; each sees a part of every batch")
    if one.settings.precision != "float32":
        yield Message(f"the student computes in {one.settings.precision}; --amp float32 is exact")


def _told_of_teachers(recipe: TrainRecipe, rows: "Rows", built: "TrainingRun") -> Run[None]:
    taught = rows.taught
    read = taught.read(rows.outputs)
    used = [one for one in taught.given if one.stored(read)]
    if taught.is_several:
        yield Message(f"{len(used)} teachers: {', '.join(one.teacher for one in used)}")
        held = min((one.reader.views(list(one.outputs.values())) for one in used if one.row_of is None), default=1)
        if rows.views.count < held and recipe.views is None:
            yield Message(f"the first cache holds {held} views of each sample, and another {rows.views.count}")
    if taught.ensemble:
        yield Message(f"logits are the mean of the {taught.ensemble} of {', '.join(taught.members)}")
    if built.balances:
        yield Message(f"embeddings are balanced by {taught.balance}: {', '.join(built.balances)}")
    for one in used:
        for output, stored in one.stored(read).items():
            part = one.reader.output_part(stored)
            if part.kind == "probe":
                what = f"a linear head on the teacher's {part.facts['input']}"
                yield Message(f"{output} are those of {part.prefix}, {what}")
    if built.training.placement:
        yield Message(built.training.placement)


def _left_out(rows: "Rows") -> Run[None]:
    joined = rows.joined
    counts = {
        "invalid rows left out": joined.invalid,
        "samples not in the cache, skipped": joined.missing,
        "labels differ from the cache's; the data's are used": joined.changed_labels,
    }
    for what, count in counts.items():
        if count:
            yield Message(f"{count:,} {what}")


def _record(recipe: TrainRecipe, rows: "Rows", built: "TrainingRun") -> Json:
    """recipe.json: what was asked for, and what it came to."""
    given = recipe.to_json()
    places = [str(Path(path).absolute()) for path in recipe.caches]
    return {
        **given,
        "cache": places[0] if len(places) == 1 else places,
        "data": location(recipe.data) if recipe.data else None,
        "digest": rows.digest,
        "targets": rows.taught.recipes(rows.outputs),
        **({"balance": rows.taught.balance} if rows.taught.balance != "none" else {}),
        "objective": rows.objective,
        "student": built.student.backbone.to_json(),
        "input": built.student.backbone.input.to_json(),
        "steps": built.settings.steps,
        "learning_rate": built.settings.learning_rate,
        "precision": built.settings.precision,
        "shuffle": built.training.shuffle,
        "views": rows.views.count,
    }


def _shuffle_begun(path: Path) -> Literal["global", "blocks"] | None:
    """How the run that stands there shuffles: memory may be freer now, but its order goes on."""
    run = RunDir(path)
    return run.recipe().get("shuffle") if (path / "recipe.json").exists() else None


def _finish(run: RunDir, rows: "Rows", built: "TrainingRun", result: Json, ranks: "Ranks") -> None:
    """Leave the student and, last of all, the summary."""
    from pipelines.lineage import lineage
    from student.balance import save_balances
    from student.distribute import full_weights
    from student.export import save_student

    weights = full_weights(built.student)  # of all processes
    if not ranks.is_first:
        return
    each = rows.taught.facts(rows.outputs)
    facts: Json = {
        "digest": rows.digest,
        "targets": next(iter(each.values()), {}),
        "class_names": list(rows.source.class_names),
        "classes": None if rows.classes is None else rows.classes.tolist(),
        "lineage": lineage(rows.reader, rows.taught.sources(rows.outputs)),
    }
    if rows.taught.is_several:
        facts |= {"digests": list(rows.taught.digests), "teachers": each, "ensemble": rows.taught.ensemble}
    if built.balances:
        facts["balance"] = rows.taught.balance
        save_balances(run.student / "balance.safetensors", built.balances)
    save_student(built.student, run.student, facts, weights=weights)
    summary = {
        "run": str(run.path),
        "digest": rows.digest,
        "student": built.student.backbone.name,
        "parameters": sum(parameter.numel() for parameter in built.student.parameters()),
        "rows": {
            "training": len(built.training),
            "validation": len(built.validation),
            "invalid": rows.joined.invalid,
            "missing": rows.joined.missing,
        },
        **result,
    }
    run.finish(summary)
