"""`fc run`: a recipe and data in; a cache, students, results.json and a page of results out."""

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CorruptCacheError, IdentityError, UsageError, differences
from featurecache.sources import Source, location, open_data
from featurecache.teachers import resolve_name
from featurecache.types import NO_LABEL, Json
from pipelines.events import Advance, Message, Run, check_one_process
from pipelines.recipes.alone import alone_in
from pipelines.recipes.contents import contents
from pipelines.recipes.page import write_page
from pipelines.recipes.plan import Case, Stage, plan_cases
from pipelines.recipes.recipe import Recipe, read_recipe
from pipelines.recipes.results import results_of
from pipelines.recipes.stages import STAGES, Work

__all__ = ["run_recipe"]

_RECIPE = "recipe.json"
_WRITE_SECONDS = 2.0
"""Between two notes of how long a stage has taken: a kill costs the note of so much time, and nothing else."""
_MAY_GROW = ("arms", "seeds", "keep")
"""What of [run] may be another when a recipe goes on: more students do not change those that there are."""


def run_recipe(
    *,
    recipe: str,
    data: str | Sequence[str],
    out: Path | str,
    scale: str = "small",
    changes: Sequence[str] = (),
    varied: Sequence[str] = (),
    device: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Run[Json]:
    """Carry out a recipe, stage by stage; the same call goes on with what was interrupted.

    `recipe` is a name or a .toml file; `changes` and `varied` are as `read_recipe` takes them. Leaves OUT/results.json,
    OUT/results.html and OUT/student, and returns where they are, with the scores of every arm. With `dry_run` the
    stages are only listed. Raises UsageError, and IdentityError for an OUT that was begun with other settings or data.
    """
    check_one_process("a recipe")
    given = read_recipe(recipe, scale=scale, changes=changes, varied=varied)
    places = [data] if isinstance(data, str) else list(data)
    limit = given.sections["run"].get("limit") or None
    source = open_data(places, splits=["train"], limit=limit)["train"]
    cases = plan_cases(given, source.fingerprint())
    _check_data(source, cases)
    # absolute, since the runs of students record where they start from
    work = Work(out=Path(out).absolute(), data=tuple(location(places)), device=device, workers=workers)
    stages = list({stage.folder: stage for case in cases for stage in case.in_order()}.values())
    if dry_run:
        return {"stages": {stage.folder: _standing(stage, work) for stage in stages}}
    read = contents(work.data, [case.sections for case in cases], limit=limit)
    _begin(given, work, source.fingerprint(), read)
    with alone_in(work.out / "stages"):
        for number, stage in enumerate(stages, 1):
            if _record(stage, work).get("result") is None:
                yield Message(f"stage {number} of {len(stages)}: {_told(stage)}")
                yield from _carried_out(stage, work)
    records = {stage.folder: _record(stage, work) for stage in stages}
    results = results_of(given, cases, records, command=_command(recipe, places, out, scale, changes, varied))
    _keep_student(cases, work, results)
    _write(work.out / "results.json", results)
    page = write_page(work.out)
    return {
        "results": str(Path(out, "results.json")),
        "page": str(Path(out, page.name)),
        "student": str(Path(out, "student")),
        "cases": results["cases"],
    }


def _check_data(source: Source, cases: Sequence[Case]) -> None:
    """Raises UsageError, UnknownNameError or TeacherError for what would else be found out when OUT has been begun."""
    labels = int(np.count_nonzero(source.labels != NO_LABEL))
    for case in cases:
        run, teacher = case.sections["run"], case.sections["teacher"]
        if not (teacher["cache"] or teacher["probabilities"]):
            resolve_name(teacher["model"])
        if "tokenizer" in case.sections and source.modality != "text":
            raise UsageError("this recipe is for texts, and these data are images")
        if run.get("labels", 0) > labels:
            hint = "set run.labels to as many at most, or to 0 for all"
            raise UsageError(f"run.labels is {run['labels']:,}, and {labels:,} samples to train on have one", hint=hint)
        if not labels and teacher["adapt"] != "none" and not (teacher["cache"] or teacher["probabilities"]):
            hint = "give teacher.adapt=none with a teacher of these classes, or teacher.probabilities"
            raise UsageError(f"teacher.adapt={teacher['adapt']} needs labels, and the data have none", hint=hint)


def _begin(given: Recipe, work: Work, fingerprint: str, read: Json) -> None:
    """Note what was asked for, and what is read. Raises IdentityError if other things were before."""
    sections = {name: dict(keys) for name, keys in given.sections.items()}
    for key in _MAY_GROW:
        sections["run"].pop(key, None)
    asked = {"recipe": given.name, "scale": given.scale, "fingerprint": fingerprint, "sections": sections}
    file = work.out / _RECIPE
    if not file.exists():
        begun = {f"{_RECIPE}.partial"}  # by a run that was killed in its first moment
        if work.out.exists() and any(path.name not in begun for path in work.out.iterdir()):
            raise UsageError(f"{work.out} is not empty and has no recipe", hint="choose another --out")
        _write(file, {**asked, "read": read})
        return
    standing = _read(file)
    known = standing.pop("read", {})
    fields = differences(standing, json.loads(json.dumps(asked)))
    fields += differences(known, {place: read.get(place, what) for place, what in known.items()}, "content of ")
    if fields:
        raise IdentityError(f"{work.out} was begun otherwise:", fields=fields, hint="choose another --out")
    if read.keys() - known:  # more cases read more
        _write(file, {**standing, "read": {**known, **read}})


def _carried_out(stage: Stage, work: Work) -> Run[None]:
    """One stage to its end, with a record of what came of it and of the seconds it took, in all of its attempts."""
    work.folder(stage).parent.mkdir(parents=True, exist_ok=True)
    spent, began, written = _record(stage, work).get("seconds", 0.0), time.monotonic(), time.monotonic()
    run = STAGES[stage.does](stage, work)
    while True:
        try:
            event = next(run)
        except StopIteration as stop:
            result = stop.value
            break
        yield replace(event, stage=f"{stage.name}, {event.stage}") if isinstance(event, Advance) else event
        if time.monotonic() - written > _WRITE_SECONDS:
            written = time.monotonic()
            _write(_record_file(stage, work), {"seconds": spent + written - began})
    seconds = round(spent + time.monotonic() - began, 2)
    _write(_record_file(stage, work), {"seconds": seconds, "updates": stage.updates, "result": result})


def _keep_student(cases: Sequence[Case], work: Work, results: Json) -> None:
    """OUT/student: the one that was chosen on validation data, whole or not at all."""
    folder = work.out / results["kept"]["run"] / "student"
    partial, place = work.out / "student.partial", work.out / "student"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)


def _told(stage: Stage) -> str:
    facts = {"seed": stage.settings.get("seed"), "updates": stage.updates}
    known = ", ".join(f"{name} {value:,}" for name, value in facts.items() if value is not None)
    return f"{stage.name} ({known})" if known else stage.name


def _standing(stage: Stage, work: Work) -> str:
    record = _record(stage, work)
    state = "done" if record.get("result") is not None else "begun" if record else "to do"
    return f"{state}, {stage.updates:,} updates" if stage.updates else state


def _record_file(stage: Stage, work: Work) -> Path:
    return work.out / "stages" / f"{stage.folder}.json"


def _record(stage: Stage, work: Work) -> Json:
    file = _record_file(stage, work)
    return _read(file) if file.exists() else {}


def _read(file: Path) -> Json:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptCacheError(f"{file} is not JSON: {error}") from None


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def _command(
    recipe: str, data: Sequence[str], out: Path | str, scale: str, changes: Sequence[str], varied: Sequence[str]
) -> str:
    words = ["featurecache", "run", recipe, *(word for place in data for word in ("--data", place))]
    words += ["--out", str(out), "--scale", scale]
    words += [word for text in changes for word in ("--set", text)]
    words += [word for text in varied for word in ("--vary", text)]
    return shlex.join(words)
