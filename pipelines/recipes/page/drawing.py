"""Figures as SVG inside a page: the page's own colours and letters, labels at the lines, the same bytes each time."""

import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.recipes.page.words import number
from pipelines.visible import shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DECADE",
    "HEIGHT",
    "INK",
    "MUTED",
    "End",
    "as_svg",
    "drawn",
    "in_numbers",
    "in_percent",
    "label",
    "say_at_the_right",
    "series",
    "spread_out",
]

COLOURS = 6
"""How many series have one of their own."""

# Stand-ins, for matplotlib knows no CSS: `as_svg` puts the page's variable in place of each, which changes in the dark.
INK, MUTED, _RULE = "#a0c000", "#a0c001", "#a0c002"
_NAMES = {INK: "ink", MUTED: "muted", _RULE: "rule"} | {f"#a0b00{at}": f"series-{at}" for at in range(COLOURS)}

_WIDTH = 4.4
"""Inches of 72 CSS pixels: as wide as a phone, so that letters there are as large as those of the page."""

HEIGHT = 2.8
"""Inches, of a figure with lines."""
_LABEL_LINE = 0.19
"""Inches from one label at the right to the next."""

DECADE = 10
"""What spans more is drawn on a logarithmic axis."""

_LETTERS = 10
_MARKERS = "os^Dvp"
_STEPS = [1, 2, 5, 10]
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may have dollars in them
    "font.size": _LETTERS,
    "text.color": INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


class End(NamedTuple):
    """Where a line ends, and what is said there."""

    y: float
    text: str
    colour: str


def series(at: int) -> tuple[str, str]:
    """(colour, marker) of a series; beyond the colours they begin again, with other markers."""
    return f"#a0b00{at % COLOURS}", _MARKERS[(at + at // COLOURS) % len(_MARKERS)]


def label(name: str, most: int = 22) -> str:
    """Anybody's name, on one line of so many letters."""
    return shortened(visible(name), most)


@contextmanager
def drawn(name: str, height: float) -> "Iterator[tuple[Figure, Axes]]":
    """An empty figure of so many inches, in which what is drawn has the page's style, and which `as_svg` then takes.

    The name keeps its ids from those of other figures on the page.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.tick_params(length=0)
        yield figure, axes


def as_svg(figure: "Figure") -> str:
    """The <svg> element of a figure that is `drawn`, without whatever differs from one day to the next."""
    written = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page has letters of its own
        figure.savefig(written, format="svg", transparent=True)
    text = re.sub("<metadata>.*?</metadata>", "", written.getvalue(), flags=re.DOTALL)
    text = re.sub('<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return re.sub(f"(?<=: )({'|'.join(_NAMES)})", lambda found: f"var(--{_NAMES[found[0]]})", text)


def say_at_the_right(axes: "Axes", ends: Sequence[End]) -> None:
    """Each line's label at the height of its end, in a figure of HEIGHT, moved where two would touch."""
    axes.set_ylim(axes.get_ylim())  # as it is now, or what is still to be drawn would move the ends
    to_fraction = axes.transData + axes.transAxes.inverted()
    heights = [float(to_fraction.transform((1, end.y))[1]) for end in ends]
    places = spread_out(heights, _LABEL_LINE / (HEIGHT - 0.5))  # half an inch is below the axes
    for end, place in zip(ends, places, strict=True):
        axes.annotate(end.text, (1, place), (6, 0), "axes fraction", "offset points", color=end.colour, va="center")


def in_percent(axis: "Axis", unit: str = " %") -> None:
    """Shares of the whole, said in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{number(round(100 * float(value), 6))}{unit}"))


def in_numbers(axis: "Axis") -> None:
    """Numbers without powers of ten, on either kind of axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if axis.get_scale() == "log" else MaxNLocator(5, steps=_STEPS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(float(value))))
    axis.set_minor_formatter(NullFormatter())


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Places from 0 to 1, moved so that no two are closer than `gap`: in the same order, and none beyond 1."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for low, high in itertools.pairwise(order):
        moved[high] = max(moved[high], moved[low] + gap)
    limit = 1.0
    for at in reversed(order):
        moved[at] = min(moved[at], limit)
        limit = moved[at] - gap
    return moved
