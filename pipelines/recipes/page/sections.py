"""What the page of a recipe's results shows, worked out: spreads over seeds, figures, sums of costs."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.types import Json
from pipelines.recipes.page import in_rows
from pipelines.recipes.page.drawing import COLOURS
from pipelines.recipes.page.losses import StageLosses, read_losses
from pipelines.recipes.page.over_setting import accuracy_over, differences_over
from pipelines.recipes.page.over_updates import losses_over_updates
from pipelines.recipes.page.read_results import Arm, Case, Difference, Results
from pipelines.recipes.page.spread import Spread

__all__ = ["Bill", "Losses", "Overview", "Row", "Section", "Shown", "show_results"]


@dataclass(frozen=True, slots=True)
class Row:
    """An arm in a case's table."""

    arm: Arm
    colour: int
    """Number of its series."""
    accuracy: Spread
    agreement: Spread
    kl: Spread


@dataclass(frozen=True, slots=True)
class Losses:
    """The validation losses of one stage."""

    stage: str
    figure: str
    """SVG; empty where there are no losses at all."""
    missing: tuple[str, ...]
    """Runs without any, in words."""


@dataclass(frozen=True, slots=True)
class Section:
    """All there is about a case."""

    case: Case
    title: str
    """The settings that make it, in words; empty where nothing was varied."""
    value: str
    """The same, without the name where there is one setting only."""
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    differences: tuple[tuple[Difference, Spread], ...]
    has_intervals: bool
    """Whether any difference has seeds enough for one."""
    figures: tuple[tuple[str, str, str], ...]
    """(what it shows, how to read it, SVG)."""
    losses: tuple[Losses, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """All cases beside each other."""

    setting: str
    """The one that was varied; empty where several were."""
    figures: tuple[tuple[str, str], ...]
    """(what it shows, SVG); none where several settings were varied."""
    accuracy: tuple[tuple[Spread | None, ...], ...]
    """For each case, of each arm; None where a case has no such arm."""


@dataclass(frozen=True, slots=True)
class Bill:
    """Seconds paid once, seconds paid for students, and how many students there are."""

    once: float
    students: float
    count: int


@dataclass(frozen=True, slots=True)
class Shown:
    """The whole page."""

    results: Results
    arms: tuple[str, ...]
    """Of all cases; their order gives the colours."""
    overview: Overview | None
    """None where there is one case only."""
    sections: tuple[Section, ...]
    bill: Bill
    settings: tuple[tuple[str, str], ...]
    """Dotted name and value."""


def show_results(folder: Path, results: Results) -> Shown:
    """Work out what the page of these results shows. Raises UsageError if they name a run outside `folder`."""
    arms = tuple(dict.fromkeys(arm.name for case in results.cases for arm in case.arms))
    names = (f"figure-{count}" for count in itertools.count(1))
    return Shown(
        results=results,
        arms=arms,
        overview=_overview(results.cases, arms, names) if len(results.cases) > 1 else None,
        sections=tuple(_section(folder, case, arms, names) for case in results.cases),
        bill=_bill(results),
        settings=tuple(_flat(results.settings)),
    )


def _overview(cases: Sequence[Case], arms: Sequence[str], names: Iterator[str]) -> Overview:
    varied = list(dict.fromkeys(name for case in cases for name in case.settings))
    setting = varied[0] if len(varied) == 1 and all(case.settings for case in cases) else ""
    of_arm = [{arm.name: Spread.of(arm.accuracy) for arm in case.arms} for case in cases]
    figures = []
    if setting:
        figures.append(("Accuracy", accuracy_over(cases, setting, arms, next(names))))
        if against := next((one.against for case in cases for one in case.differences), ""):
            figure = differences_over(cases, setting, arms, against, next(names))
            figures.append((f"Points better than {against}", figure))
    return Overview(setting, tuple(figures), tuple(tuple(found.get(arm) for arm in arms) for found in of_arm))


def _section(folder: Path, case: Case, arms: Sequence[str], names: Iterator[str]) -> Section:
    settings = list(_flat(case.settings))
    title = ", ".join(f"{name} = {value}" for name, value in settings)
    differences = [(difference, Spread.of(difference.values)) for difference in case.differences]
    return Section(
        case=case,
        title=title,
        value=settings[0][1] if len(settings) == 1 else title,
        seeds=tuple(sorted({seed for arm in case.arms for seed in arm.seeds})),
        rows=tuple(_row(arm, arms) for arm in case.arms),
        differences=tuple(differences),
        has_intervals=any(spread.interval for _, spread in differences),
        figures=tuple(_figures(case, arms, names)),
        losses=tuple(_losses(stage, arms, names) for stage in read_losses(folder, case)),
    )


def _figures(case: Case, arms: Sequence[str], names: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    yield "Accuracy", "A dot for each seed, a bar at their mean.", in_rows.accuracies(case, arms, next(names))
    if case.differences:
        how = "Paired by seed; the thin line is a 95 % interval of the mean."
        yield "Points of difference", how, in_rows.differences(case, arms, next(names))


def _row(arm: Arm, arms: Sequence[str]) -> Row:
    colour = arms.index(arm.name) % COLOURS
    return Row(arm, colour, Spread.of(arm.accuracy), Spread.of(arm.agreement), Spread.of(arm.kl))


def _losses(stage: StageLosses, arms: Sequence[str], names: Iterator[str]) -> Losses:
    figure = losses_over_updates(stage, arms, next(names)) if stage.curves else ""
    return Losses(stage.stage, figure, tuple(f"{arm} with seed {seed}" for arm, seed in stage.missing))


def _bill(results: Results) -> Bill:
    seconds = {True: 0.0, False: 0.0}
    for cost in results.cost:
        seconds[cost.paid_once] += cost.seconds
    last = {folders[-1] for case in results.cases for arm in case.arms for folders in arm.runs if folders}
    return Bill(seconds[True], seconds[False], len(last - {None}))


def _flat(settings: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values, as people read them."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: Json) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
