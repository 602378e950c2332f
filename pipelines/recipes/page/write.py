"""The page of a recipe's results: one file that needs no other, from results.json and the runs that it names."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipes.page.read_results import read_results
from pipelines.recipes.page.sections import Shown, show_results
from pipelines.recipes.page.words import elapsed, number, percent
from pipelines.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["write_page"]

_ARXIV = re.compile(r"arXiv[: ]*([0-9]{4}\.[0-9]{4,5})")


def write_page(out: Path) -> Path:
    """Write out/results.html from out/results.json and the metrics of the runs that it names; returns its path.

    The same results make the same bytes. Numbers and metrics that are not there are shown as missing. Raises UsageError
    if there is no results.json, if it is not what a recipe's run writes, or if it names a run outside `out`.
    """
    text = _render(show_results(out, read_results(out)))
    path = out / "results.html"
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _render(shown: Shown) -> str:
    paper = _ARXIV.search(shown.results.paper)
    address = f"https://arxiv.org/abs/{paper[1]}" if paper else ""
    return _environment().get_template("page.html").render(shown=shown, results=shown.results, address=address)


def _environment() -> "Environment":
    """Whatever a template is given is escaped, but for figures, which it marks as safe."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=lambda value: visible(value, kept="\n") if type(value) is str else value,
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "difference": lambda value: percent(value, sign=True),
        "elapsed": elapsed,
        "number": lambda value: number(float(value)),
        "percent": percent,
    }
    return environment
