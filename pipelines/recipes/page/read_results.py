"""results.json of a recipe's run, read without trust: every field is checked before anything is made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.validate import parse_json
from featurecache.types import Json
from pipelines.recipes.page.fields import Fields, WrongFieldError

__all__ = ["Arm", "Case", "Cost", "Difference", "Results", "Stage", "read_results"]

VERSION = 1

_HINT = "write it again with `fc run`, or give the --out of a run that has come to its end"


@dataclass(frozen=True, slots=True)
class Stage:
    """One training of an arm's chain."""

    name: str
    updates: int | None


@dataclass(frozen=True, slots=True)
class Arm:
    """One chain of stages, run once with each seed; what was measured is None for a seed that has no such number."""

    name: str
    student: str
    parameters: int | None
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    """Of each seed, 0 to 1."""
    agreement: tuple[float | None, ...]
    """How often the teacher's first class is the student's, of each seed, 0 to 1."""
    kl: tuple[float | None, ...]
    """From the teacher, of each seed, in nats."""
    runs: tuple[tuple[str | None, ...], ...]
    """Of each seed, the folder of each stage, relative to the results; not checked yet."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more accurate an arm is than another, seed by seed."""

    arm: str
    against: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """All arms under the same settings."""

    settings: Mapping[str, Json]
    """What was varied, by its dotted name."""
    teacher: str
    teacher_accuracy: float | None
    rows: int | None
    """How many the accuracies were measured on."""
    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What all runs of a stage took."""

    stage: str
    runs: int
    seconds: float
    updates: int | None
    paid_once: bool
    """Whether for all students together, as the teacher is."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a recipe's run left."""

    recipe: str
    about: str
    paper: str
    scale: str
    command: str
    split: str
    settings: Mapping[str, Json]
    """As they were resolved, by section."""
    cases: tuple[Case, ...]
    cost: tuple[Cost, ...]
    student: str | None
    """The folder of the student that was kept, relative to the results."""
    kept: tuple[str, int] | None
    """Its arm and seed."""


def read_results(folder: Path) -> Results:
    """What stands in results.json of a folder. Raises UsageError if there is none, or it is not what a run writes."""
    file = folder / "results.json"
    if not file.is_file():
        raise UsageError(f"{folder} has no results.json", hint=_HINT)
    try:
        value = parse_json(file.read_bytes(), str(file))
    except CorruptCacheError as error:
        raise UsageError(error.message, hint=_HINT) from None
    try:
        return _results(Fields(value))
    except WrongFieldError as error:
        raise UsageError(f"{file} cannot be used: {error}", hint=_HINT) from None


def _results(fields: Fields) -> Results:
    if (version := fields.value("version", int)) != VERSION:
        raise WrongFieldError(f"version is {version}, and {VERSION} is read here")
    return Results(
        recipe=fields.value("recipe", str),
        about=fields.value("about", str),
        paper=fields.value("paper", str),
        scale=fields.value("scale", str),
        command=fields.value("command", str),
        split=fields.value("split", str),
        settings=fields.value("settings", dict),
        cases=fields.each("cases", _case),
        cost=fields.each("cost", _cost),
        student=fields.optional("student", str),
        kept=_kept(fields),
    )


def _case(fields: Fields) -> Case:
    teacher = fields.within("teacher")
    arms = fields.each("arms", _arm)
    differences = fields.each("differences", _difference)
    if unknown := {one.arm for one in differences} - {arm.name for arm in arms}:
        raise WrongFieldError(f"differences are of arms that there are not: {', '.join(sorted(unknown))[:80]}")
    return Case(
        settings=fields.value("settings", dict),
        teacher=teacher.value("name", str),
        teacher_accuracy=teacher.share("accuracy"),
        rows=teacher.optional("rows", int),
        arms=arms,
        differences=differences,
    )


def _arm(fields: Fields) -> Arm:
    stages = fields.each("stages", lambda stage: Stage(stage.value("stage", str), stage.optional("updates", int)))
    seeds = fields.all("seeds", int)
    return Arm(
        name=fields.value("arm", str),
        student=fields.value("student", str),
        parameters=fields.optional("parameters", int),
        stages=stages,
        seeds=seeds,
        accuracy=fields.shares("accuracy", len(seeds)),
        agreement=fields.shares("agreement", len(seeds)),
        kl=fields.numbers("kl", len(seeds)),
        runs=fields.table("runs", len(seeds), len(stages)),
    )


def _difference(fields: Fields) -> Difference:
    values = fields.numbers("values", len(fields.value("values", list)))
    return Difference(fields.value("arm", str), fields.value("against", str), values)


def _cost(fields: Fields) -> Cost:
    return Cost(
        stage=fields.value("stage", str),
        runs=fields.value("runs", int),
        seconds=fields.value("seconds", float),
        updates=fields.optional("updates", int),
        paid_once=fields.value("paid", str) == "once",
    )


def _kept(fields: Fields) -> tuple[str, int] | None:
    if fields.optional("kept", dict) is None:
        return None
    kept = fields.within("kept")
    return kept.value("arm", str), kept.value("seed", int)
