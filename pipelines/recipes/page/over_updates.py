"""The figure of one stage: validation losses over updates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.recipes.page.drawing import (
    DECADE,
    HEIGHT,
    End,
    as_svg,
    drawn,
    in_numbers,
    label,
    say_at_the_right,
    series,
)
from pipelines.recipes.page.losses import Curve, StageLosses
from pipelines.recipes.page.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["losses_over_updates"]


def losses_over_updates(stage: StageLosses, arms: Sequence[str], name: str) -> str:
    """SVG: for each curve a line through the means of its seeds, in a band from the lowest to the highest.

    There has to be a curve. `arms` are all there are in any case, whose order gives the colours; `name` is that of the
    figure, on its page.
    """
    with drawn(name, HEIGHT) as (figure, axes):
        ends = [_draw_curve(axes, curve, arms.index(curve.arms[0])) for curve in stage.curves]
        lowest = min(min(curve.low) for curve in stage.curves)
        if 0 < DECADE * lowest < max(max(curve.high) for curve in stage.curves):
            axes.set_yscale("log")
        in_numbers(axes.xaxis)
        in_numbers(axes.yaxis)
        axes.set_xlim(left=0)
        axes.set_xlabel("updates")
        say_at_the_right(axes, ends)
        return as_svg(figure)


def _draw_curve(axes: "Axes", curve: Curve, at: int) -> End:
    colour, marker = series(at)
    axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    if len(curve.steps) == 1:  # of which a band has no width
        axes.vlines(curve.steps, curve.low, curve.high, color=colour, alpha=0.5)
    axes.plot(curve.steps, curve.mean, color=colour, marker=marker, markevery=[-1])
    return End(curve.mean[-1], f"{label(', '.join(curve.arms))} {number(curve.mean[-1])}", colour)
