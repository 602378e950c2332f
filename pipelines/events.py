"""What a pipeline tells while it runs. It yields these and prints nothing; whoever runs it decides what to show."""

import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from featurecache.errors import UsageError

__all__ = [
    "Advance",
    "Event",
    "Message",
    "Run",
    "check_one_process",
    "default_device",
    "default_workers",
    "finish",
    "is_first_process",
]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Message:
    """A fact worth a line of the log: what a name resolved to, what was left out and why."""

    text: str


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a stage is."""

    stage: str
    done: int
    total: int
    unit: str = "rows"
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Short values to show beside the bar, such as the loss."""
    until_safe: int = 0
    """Units still to come until nothing is lost by stopping; 0 where that is so now."""


Event: TypeAlias = Message | Advance
Run: TypeAlias = Generator[Event, None, Result]
"""A pipeline under way: yields events, returns its result."""


def finish(run: Run[Result]) -> Result:
    """Run a pipeline to its end in silence and return its result."""
    while True:
        try:
            next(run)
        except StopIteration as stop:
            return stop.value


def is_first_process() -> bool:
    """Whether this is the process that prints, of those that torchrun may have started."""
    return os.environ.get("RANK", "0") == "0"


def check_one_process(what: str) -> None:
    """Raises UsageError where torchrun has started several processes for what one of them does."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise UsageError(f"{what} takes one process, and torchrun started {world}", hint="start it without torchrun")


def default_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_workers(device: str) -> int:
    """Loader processes: a quarter of the cores where the network needs them too, else all but one and at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")  # of torchrun, which share this machine
    cores = max(cores // max(int(processes), 1), 1) if processes.isdecimal() else cores
    return cores // 4 if device == "cpu" else min(cores - 1, 8)
