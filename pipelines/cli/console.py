"""The one place that prints: results to stdout, everything else to stderr."""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from featurecache.errors import DiskFullError, FeatureCacheError
from featurecache.types import Json
from pipelines.cli.interrupts import Interrupts
from pipelines.events import Advance, Event, Message, Run
from pipelines.visible import visible

__all__ = ["duration", "fail", "follow", "note", "show", "size", "write"]

Result = TypeVar("Result")

_QUIET_SECONDS = 30
"""Between lines of progress where there is no terminal to draw a bar on."""


def write(text: str) -> None:
    """A result, as text, to stdout; names in it may come from a stranger's cache."""
    text = visible(text, kept="\n\t")
    try:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """A line of the log, to stderr."""
    sys.stderr.write(visible(f"{text}\n", kept="\n\t"))


def show(facts: Json, *, as_json: bool, layout: Callable[[Any], str] | None = None) -> None:
    """A result: as one JSON object, in its own layout, or as indented names and values."""
    if as_json:
        write(json.dumps(_finite(facts), ensure_ascii=False))
    elif layout:
        write(layout(facts))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        write("\n".join(_lines(facts, width)))


def fail(error: FeatureCacheError) -> NoReturn:
    """Say what is wrong and what to do, and end with the error's exit code."""
    rank = os.environ.get("RANK", "0")  # several processes often fail alike
    note(f"error: {error.message}" if rank == "0" else f"process {rank}: error: {error.message}")
    if error.hint and rank == "0":
        # typed as it stands, `fc extract` would reach the builtin of bash and zsh
        note(f"  hint: {error.hint.replace('`fc ', '`featurecache ')}")
    raise SystemExit(error.exit_code)


def follow(run: Run[Result], *, interrupted: Callable[[], str] | str) -> Result:
    """Run a pipeline to its end, showing its progress; `interrupted` is what to say after ^C, SIGTERM, or a full disk.

    Exits with 130 or 143, as shells count signals. Raises what the pipeline raises.
    """
    try:
        with Interrupts(note) as interrupts:
            try:
                return _shown(run, interrupts)
            except KeyboardInterrupt:
                pass
            except RuntimeError:
                if not interrupts.number:  # else it is a loader process that the signal has ended too
                    raise
            with contextlib.suppress(RuntimeError):  # the same, heard of only now
                run.close()
    except DiskFullError as error:
        raise DiskFullError(error.message, hint=f"{error.hint}; {_told(interrupted)}") from error
    note(f"\ninterrupted: {_told(interrupted)}")
    raise SystemExit(128 + (interrupts.number or signal.SIGINT))


def _told(text: Callable[[], str] | str) -> str:
    return text if isinstance(text, str) else text()


def _shown(run: Run[Result], interrupts: Interrupts) -> Result:
    can_draw = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    display = _Bars() if can_draw else _PlainLines()
    try:
        while True:
            event = next(run)
            display.update(event)
            interrupts.stop_here(event)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        display.stop()


class _PlainLines:
    """A line every half minute, for logs."""

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._pace = _Pace()
        self._ended: set[str] = set()

    def stop(self) -> None:
        """Nothing to tidy up."""

    def update(self, event: Event) -> None:
        """Print a message, or a line if it is time for one."""
        if isinstance(event, Message):
            note(event.text)
            return
        text = self._pace.text(event)
        now = time.monotonic()
        is_end = event.done >= event.total and event.stage not in self._ended
        if is_end or (event.done < event.total and now - self._shown >= _QUIET_SECONDS):
            self._ended |= {event.stage} if is_end else set()
            self._shown = now
            note(f"{event.stage}: {text}")


class _Bars:
    """One bar for each stage, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            console=Console(stderr=True, highlight=False, emoji=False),
        )
        self._tasks: dict[str, Any] = {}
        self._pace = _Pace()
        self._progress.start()

    def stop(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()

    def update(self, event: Event) -> None:
        """Print a message above the bars, or move a bar."""
        if isinstance(event, Message):
            self._progress.console.print(event.text, markup=False, soft_wrap=True)
            return
        text = self._pace.text(event)
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._progress.add_task(event.stage, total=event.total, text=text)
        self._progress.update(self._tasks[event.stage], completed=event.done, text=text)


class _Pace:
    """How far a stage is, how fast, and how long it will take: counted from where this run began with it."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}

    def text(self, event: Advance) -> str:
        """ "1,250/3,000 steps, 12/s, 2 min left, loss 3.412"; at the end the time it took instead of what is left."""
        now = time.monotonic()
        since, first = self._began.setdefault(event.stage, (now, event.done))
        seconds, done = now - since, event.done - first
        parts = [f"{event.done:,}/{event.total:,} {event.unit}"]
        if seconds > 0 and done > 0:
            left = (event.total - event.done) * seconds / done
            parts += [f"{_short(done / seconds)}/s", f"{duration(left)} left" if left else duration(seconds)]
        return ", ".join([*parts, *(f"{name} {value}" for name, value in event.facts.items())])


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Seconds in words: "42 s", "7 min", "2 h 05 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def size(count: int) -> str:
    """Bytes in words: "512 bytes", "1.9 MB", "69 GB"."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    power = min(max(len(f"{count}") - 1, 0) // 3, len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"


def _lines(facts: Json, width: int | None = None, indent: str = "") -> list[str]:
    """Names and values in two columns; what is nested is indented, and what is too long for `width` goes on below."""
    if not isinstance(facts, Mapping):
        return [f"{indent}{_text(facts)}"]
    names = max((len(str(name)) for name in facts), default=0)
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}", *_lines(value, width, indent + "  ")]
        else:
            lines += _wrapped(f"{indent}{name:<{names}}  ", "none" if value == {} else _text(value), width)
    return lines


def _wrapped(start: str, text: str, width: int | None) -> list[str]:
    if width is None or width < len(start) + 20:
        return [start + text]
    below = " " * len(start)
    return textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    ) or [start]


def _text(value: Json) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.6f}" if 0.999 <= abs(value) < 1 else f"{value:.4g}"  # what is almost 1 is not 1
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def _finite(value: Json) -> Json:
    """With null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
