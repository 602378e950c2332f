"""The figures of one case, with a row for each arm, or for each pair of arms."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipelines.recipes.page.drawing import INK, MUTED, as_svg, drawn, in_percent, label, series
from pipelines.recipes.page.read_results import Case
from pipelines.recipes.page.spread import Spread
from pipelines.recipes.page.words import MINUS, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracies", "differences"]

_ROW = 0.42
_AROUND = 0.75
"""Inches of one row, and of what is above and below all of them."""
_SCATTER = 0.15
"""Of a row: how far the first and the last seed are from its middle, or equal ones would hide each other."""


def accuracies(case: Case, arms: Sequence[str], name: str) -> str:
    """SVG: for each arm every seed's dot and a bar at their mean, and the teacher's line across.

    `arms` are all there are in any case, whose order gives the colours; `name` is the figure's, on its page.
    """
    with drawn(name, _height(len(case.arms))) as (figure, axes):
        for row, arm in enumerate(case.arms):
            _draw_row(axes, row, Spread.of(arm.accuracy), series(arms.index(arm.name))[0], percent)
        if (teacher := case.teacher_accuracy) is not None:
            axes.axvline(teacher, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            said, where = f"teacher {percent(teacher)}", ("data", "axes fraction")
            axes.annotate(said, (teacher, 1), (0, 3), where, "offset points", color=MUTED, ha="center")
        _name_rows(axes, [label(arm.name) for arm in case.arms])
        in_percent(axes.xaxis)
        return as_svg(figure)


def differences(case: Case, arms: Sequence[str], name: str) -> str:
    """SVG: for each pair of arms every seed's dot, a bar at their mean, and a line as long as its interval.

    There has to be a pair. The colour is that of the arm; `arms` and `name` are as above.
    """
    with drawn(name, _height(len(case.differences))) as (figure, axes):
        axes.axvline(0, color=MUTED, linewidth=1)
        for row, pair in enumerate(case.differences):
            spread, colour = Spread.of(pair.values), series(arms.index(pair.arm))[0]
            if spread.interval is not None:
                axes.plot(spread.interval, [row, row], color=colour, linewidth=1)
            _draw_row(axes, row, spread, colour, _signed)
        _name_rows(axes, [f"{label(pair.arm, 13)} {MINUS} {label(pair.against, 13)}" for pair in case.differences])
        in_percent(axes.xaxis, unit="")
        return as_svg(figure)


def _height(rows: int) -> float:
    return _AROUND + _ROW * max(rows, 1)


def _draw_row(axes: "Axes", row: int, spread: Spread, colour: str, said: Callable[[float], str]) -> None:
    last = len(spread.values) - 1
    beside = [row + _SCATTER * (2 * at / last - 1 if last else 0) for at in range(last + 1)]
    axes.plot(spread.values, beside, "o", color=colour, alpha=0.75, markeredgewidth=0)
    if spread.mean is not None:
        axes.plot([spread.mean] * 2, [row - 0.32, row + 0.32], color=colour, linewidth=3, solid_capstyle="butt")
    text = "missing" if spread.mean is None else said(spread.mean)
    axes.annotate(text, (1, row), (6, 0), ("axes fraction", "data"), "offset points", color=colour, va="center")


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _signed(value: float) -> str:
    return percent(value, sign=True)
