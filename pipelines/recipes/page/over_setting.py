"""The figures of several cases: accuracies, and their differences, over the setting that was varied."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from featurecache.types import Json
from pipelines.recipes.page.drawing import (
    DECADE,
    HEIGHT,
    MUTED,
    End,
    as_svg,
    drawn,
    in_percent,
    label,
    say_at_the_right,
    series,
)
from pipelines.recipes.page.read_results import Case
from pipelines.recipes.page.spread import Spread
from pipelines.recipes.page.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_over", "differences_over"]


class _Line(NamedTuple):
    """What was measured in each case, and how it is drawn."""

    name: str
    spreads: Sequence[Spread]
    colour: str
    marker: str


def accuracy_over(cases: Sequence[Case], setting: str, arms: Sequence[str], name: str) -> str:
    """SVG: accuracies over a setting that was varied: every seed's dot, a line through the means of each arm.

    Values that are no numbers stand beside each other, and no line joins them. `arms` are all there are in any case,
    whose order gives the colours; `name` is the figure's, on its page.
    """
    lines = []
    for at, arm in enumerate(arms):
        found = [[value for one in case.arms if one.name == arm for value in one.accuracy] for case in cases]
        lines.append(_Line(label(arm), [Spread.of(values) for values in found], *series(at)))
    lines.append(_Line("teacher", [Spread.of([case.teacher_accuracy]) for case in cases], MUTED, "."))
    with drawn(name, HEIGHT) as (figure, axes):
        _draw(axes, setting, [case.settings[setting] for case in cases], lines, percent)
        in_percent(axes.yaxis)
        return as_svg(figure)


def differences_over(cases: Sequence[Case], setting: str, arms: Sequence[str], against: str, name: str) -> str:
    """SVG: how much better arms are than one of them, drawn as `accuracy_over` draws accuracies."""
    lines = []
    for at, arm in enumerate(arms):
        found = [[one for one in case.differences if (one.arm, one.against) == (arm, against)] for case in cases]
        spreads = [Spread.of([value for one in each for value in one.values]) for each in found]
        lines.append(_Line(label(arm), spreads, *series(at)))
    with drawn(name, HEIGHT) as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=1)
        _draw(axes, setting, [case.settings[setting] for case in cases], lines, lambda value: percent(value, sign=True))
        in_percent(axes.yaxis, unit="")
        return as_svg(figure)


def _draw(
    axes: "Axes", setting: str, values: Sequence[Json], lines: Sequence[_Line], said: Callable[[float], str]
) -> None:
    is_numeric = all(type(value) in (int, float) for value in values)
    xs = [float(value) if is_numeric else float(at) for at, value in enumerate(values)]
    if is_numeric and 0 < DECADE * min(xs) < max(xs):
        axes.set_xscale("log")
    axes.set_xticks(xs, [f"{value:,}" if is_numeric else label(str(value)) for value in values])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label(setting))
    ends = [_draw_line(axes, xs, line, said, joined=is_numeric) for line in lines]
    say_at_the_right(axes, [end for end in ends if end])


def _draw_line(
    axes: "Axes", xs: Sequence[float], line: _Line, said: Callable[[float], str], *, joined: bool
) -> End | None:
    """The dots of seeds and the line of means; None where nothing was measured."""
    means = []
    for x, spread in sorted(zip(xs, line.spreads, strict=True), key=lambda pair: pair[0]):
        if spread.mean is not None:
            means.append((x, spread.mean))
        if len(spread.values) > 1:
            dots = [x] * len(spread.values)
            axes.plot(dots, spread.values, "o", color=line.colour, alpha=0.5, markersize=3, markeredgewidth=0)
    if not means:
        return None
    style = "" if not joined else "--" if line.colour == MUTED else "-"
    axes.plot(*zip(*means, strict=True), marker=line.marker, color=line.colour, linestyle=style)
    return End(means[-1][1], f"{line.name} {said(means[-1][1])}", line.colour)
