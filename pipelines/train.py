"""`fc train-student`: a cache in, a trained student and its run directory out; no teacher is loaded."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurecache.sources import location
from featurecache.types import Json
from pipelines.events import Advance, Message, Run
from pipelines.recipe import TrainRecipe
from pipelines.run_dir import RunDir

if TYPE_CHECKING:
    from pipelines.build import Rows, TrainingRun

__all__ = ["follow", "train_student"]

_LOG_EVERY = 10
"""Steps between lines of metrics.jsonl: reading a loss makes the device wait."""


def train_student(
    *,
    out: Path | str | None = None,
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    targets: Literal["auto", "device", "stream"] = "auto",
    **recipe: Any,
) -> Run[Json]:
    """Train a student from a cache; `recipe` has the fields of `TrainRecipe`. Returns the run's summary.

    `targets` says where they are while it trains: on the device, or read from the cache as they are needed.

    Raises UsageError, IncompleteError for a cache that is not sealed, and IdentityError for data that the teacher did
    not see, or for a run that was begun with other settings.
    """
    from pipelines.build import build, open_rows, try_once
    from student.trainer import train

    caches = recipe.get("cache", "./cache")
    named = str(caches) if isinstance(caches, str | Path) else tuple(map(str, caches))
    given = TrainRecipe(**{**recipe, "cache": named})
    rows = open_rows(given)
    yield from _left_out(rows)
    built = build(given, rows, device=device, workers=workers, targets=targets)
    try_once(built)
    yield Message(f"student {built.student.backbone.name}, objective {rows.objective}")
    yield from map(Message, built.objective.notes)
    name = built.student.backbone.name.replace(":", "-")
    path = Path(out or RunDir.named(Path("runs"), name, resume=resume))
    if resume and given.shuffle == "auto":
        built.training.shuffle = _shuffle_begun(path) or built.training.shuffle
    run = RunDir.create(path, _record(given, rows, built), resume=resume)
    yield Message(f"run {run.path}: {len(built.training):,} rows to train on, {len(built.validation):,} to validate")
    yield from _told_of_teachers(given, rows, built)
    if rows.stored is not None:
        what = f"images of {rows.stored.size} pixels" if rows.stored.modality == "image" else "tokens"
        yield Message(f"inputs come from the cache, as {what}; --data would read the samples themselves")
    if rows.views.count > 1:
        yield Message(f"{rows.views.count} views of each sample, {rows.views.per_sample} in each epoch")
    if built.training.shuffle == "blocks":
        yield Message("rows are shuffled in groups of blocks, and read one group ahead: not all need fit in memory")
    if resume and run.is_finished():
        yield Message("it was finished before: nothing to do")
        return run.summary()
    loop = train(
        built.student,
        built.objective,
        built.training,
        built.settings,
        validation=built.validation,
        checkpoint=run.checkpoint,
        resume=resume and run.checkpoint.exists(),
    )
    result = yield from follow(loop, run, built.settings.steps)
    return _finish(run, rows, built, result)


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
        "shuffle": built.training.shuffle,
        "views": rows.views.count,
    }


def _shuffle_begun(path: Path) -> Literal["global", "blocks"] | None:
    """How the run that stands there shuffles: memory may be freer now, but its order goes on."""
    run = RunDir(path)
    return run.recipe().get("shuffle") if (path / "recipe.json").exists() else None


def follow(loop: Any, run: RunDir, steps: int) -> Run[Json]:
    """Write metrics and pass progress on; returns the last losses and the seconds of training."""
    from student.trainer import Step, Validated

    began = time.monotonic()
    result: dict[str, Any] = run.last_losses()
    first = True
    for event in loop:
        if first:
            run.forget_metrics_after(event.step - 1)
            yield Advance("train", event.step - 1, steps, "steps")
            first = False
        if isinstance(event, Validated):
            result["validation"] = dict(event.losses)
            run.append_metrics({"step": event.step, "epoch": event.epoch, "validation": result["validation"]})
        elif isinstance(event, Step) and (event.step % _LOG_EVERY == 0 or event.step == steps):
            losses = {name: float(value) for name, value in event.losses.items()}
            result["training"] = losses
            line = {"step": event.step, "epoch": event.epoch, "learning_rate": event.learning_rate, **losses}
            run.append_metrics(line)
            yield Advance("train", event.step, steps, "steps", {"loss": f"{losses['loss']:.3f}"})
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def _finish(run: RunDir, rows: "Rows", built: "TrainingRun", result: Json) -> Json:
    from pipelines.lineage import lineage
    from student.balance import save_balances
    from student.export import save_student

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
    save_student(built.student, run.student, facts)
    summary = {
        "run": str(run.path),
        "digest": rows.digest,
        "student": built.student.backbone.name,
        "parameters": sum(parameter.numel() for parameter in built.student.parameters()),
        "steps": built.settings.steps,
        "rows": {
            "training": len(built.training),
            "validation": len(built.validation),
            "invalid": rows.joined.invalid,
            "missing": rows.joined.missing,
        },
        **result,
    }
    run.finish(summary)
    return summary
