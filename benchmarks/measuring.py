"""What the speed benchmarks share: interleaved repetitions, medians of ratios, a table, one JSON object at the end.

A machine's speed wanders, so each contestant runs once in every repetition, one after the other, and what is compared
are the ratios within a repetition; their median is told, and where the middle half of them lies.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["busy_fraction", "finish", "interleaved", "median_ratio", "rate", "show", "show_rates"]


def rate(units: float, work: Callable[[], object]) -> float:
    """Units per second of one run of the work."""
    began = time.perf_counter()
    work()
    return units / (time.perf_counter() - began)


def busy_fraction(work: Callable[[], object]) -> float:
    """The part of the time of some work in which a CUDA device runs a kernel: overlapping ones count once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    spans = sorted((event.time_range.start, event.time_range.end) for event in profile.events() or ())
    busy = reached = 0.0
    for start, end in spans:  # microseconds
        busy += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return busy / 1e6 / seconds


def interleaved(contestants: Mapping[str, Callable[[], float]], *, repetitions: int = 5) -> dict[str, list[float]]:
    """The rate that each contestant returned in each repetition; every one runs once a repetition, in a turning order.

    One round before them is not counted: it warms caches, allocators and kernels.
    """
    names = list(contestants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-1, repetitions):
        first = repetition % len(names)  # nobody always runs behind the same one
        for name in names[first:] + names[:first]:
            found = contestants[name]()
            if repetition >= 0:
                rates[name].append(found)
    return rates


def median_ratio(rates: Mapping[str, Sequence[float]], name: str, baseline: str) -> float:
    """The median over repetitions of one contestant's rate over another's in the same repetition."""
    return statistics.median(_ratios(rates, name, baseline))


def show_rates(rates: Mapping[str, Sequence[float]], *, unit: str, baseline: str) -> None:
    """A table: each contestant's median rate, and its ratio to the baseline (median, quartiles)."""
    rows = []
    for name, found in rates.items():
        ratios = _ratios(rates, name, baseline)
        low, middle, high = statistics.quantiles(ratios * 2, n=4, method="inclusive")  # twice, so that one is enough
        rows.append((name, f"{statistics.median(found):,.6g}", f"{middle:.4g}", f"{low:.4g} to {high:.4g}"))
    show(("", f"{unit}, median", f"of {baseline}", "middle half"), rows)


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with its first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
    print(flush=True)


def finish(**ratios: Any) -> None:
    """The last line of a benchmark: one JSON object."""
    print(json.dumps(ratios, default=float), flush=True)


def _ratios(rates: Mapping[str, Sequence[float]], name: str, baseline: str) -> list[float]:
    return [ours / theirs for ours, theirs in zip(rates[name], rates[baseline], strict=True)]
