"""The one place that prints: results to stdout, everything else to stderr."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from featurecache.errors import FeatureCacheError
from featurecache.types import Json
from pipelines.events import Advance, Event, Message, Run

__all__ = ["fail", "follow", "note", "show", "write"]

Result = TypeVar("Result")

_QUIET_SECONDS = 30
"""Between lines of progress where there is no terminal to draw a bar on."""


def write(text: str) -> None:
    """A result, as text, to stdout."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def note(text: str) -> None:
    """A line of the log, to stderr."""
    sys.stderr.write(f"{text}\n")


def show(facts: Json, *, as_json: bool, layout: Callable[[Any], str] | None = None) -> None:
    """A result: as one JSON object, in its own layout, or as indented names and values."""
    if as_json:
        write(json.dumps(facts, ensure_ascii=False))
    else:
        write(layout(facts) if layout else "\n".join(_lines(facts)))


def fail(error: FeatureCacheError) -> NoReturn:
    """Say what is wrong and what to do, and end with the error's exit code."""
    note(f"error: {error.message}")
    if error.hint:
        note(f"  hint: {error.hint}")
    raise SystemExit(error.exit_code)


def follow(run: Run[Result], *, interrupted: str) -> Result:
    """Run a pipeline to its end, showing its progress; `interrupted` is what to say after ^C."""
    display = _Bars() if sys.stderr.isatty() else _PlainLines()
    try:
        with display:
            while True:
                display.update(next(run))
    except StopIteration as stop:
        result: Result = stop.value
        return result
    except KeyboardInterrupt:
        run.close()
        note(f"\ninterrupted: {interrupted}")
        raise SystemExit(130) from None


class _PlainLines:
    """A line every half minute, for logs."""

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._stage = ""
        self._began = (0.0, 0)

    def __enter__(self) -> "_PlainLines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Message):
            note(event.text)
            return
        if event.stage != self._stage:
            self._stage, self._began = event.stage, (now, event.done)
        is_last = event.done >= event.total
        if not is_last and now - self._shown < _QUIET_SECONDS:
            return
        self._shown = now
        seconds, rows = now - self._began[0], event.done - self._began[1]
        rate = rows / seconds if seconds > 0 and rows else None
        note(f"{event.stage}: {event.done:,}/{event.total:,} {event.unit}{_pace(event, rate)}{_facts(event)}")


class _Bars:
    """One bar for each stage, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True, highlight=False),
        )
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, event: Event) -> None:
        if isinstance(event, Message):
            self._progress.console.print(event.text, markup=False)
            return
        if event.stage not in self._tasks:
            self._began[event.stage] = time.monotonic(), event.done
            fields = {"unit": event.unit, "rate": "", "facts": ""}
            self._tasks[event.stage] = self._progress.add_task(event.stage, total=event.total, **fields)
        since, first = self._began[event.stage]
        seconds = time.monotonic() - since
        rate = f"{(event.done - first) / seconds:,.0f}/s" if seconds > 0 and event.done > first else ""
        self._progress.update(
            self._tasks[event.stage], completed=event.done, rate=rate, facts=_facts(event).strip(", ")
        )


def _pace(event: Advance, rate: float | None) -> str:
    if rate is None:
        return ""
    left = (event.total - event.done) / rate
    return f", {rate:,.1f}/s" + (f", {left / 60:.1f} min left" if left else "")


def _facts(event: Advance) -> str:
    return "".join(f", {name} {value}" for name, value in event.facts.items())


def _lines(facts: Json, indent: str = "") -> list[str]:
    """Names and values in two columns; what is nested is indented."""
    if not isinstance(facts, Mapping):
        return [f"{indent}{facts}"]
    width = max((len(str(name)) for name in facts), default=0)
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")] if value else [f"{indent}{name:<{width}}  none"]
        else:
            lines.append(f"{indent}{name:<{width}}  {_text(value)}")
    return lines


def _text(value: Json) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
