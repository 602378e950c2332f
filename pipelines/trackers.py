"""Where a run's curves go besides metrics.jsonl: TensorBoard, or any tracker with the functions of Weights & Biases."""

import contextlib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from featurecache.errors import UsageError
from featurecache.types import Json

__all__ = ["Tracker", "check_trackers", "open_trackers"]

_PROJECT = "featurecache"


class Tracker(Protocol):
    """Takes numbers by name."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after an optimizer step."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


@contextlib.contextmanager
def open_trackers(names: Sequence[str], run: Path, recipe: Json, *, step: int = 0) -> Iterator[list[Tracker]]:
    """The trackers of these names for a run directory, of which `step` steps are made; closed at the end.

    "tensorboard" writes into RUN/tensorboard; any other name is a module with `init`, `log` and `finish`, as wandb and
    trackio have. Raises UsageError for one that is not installed or is none.
    """
    opened: list[Tracker] = []
    try:
        for name in names:
            make = _TensorBoard if name == "tensorboard" else _WandbLike
            opened.append(make(name, run, recipe, step))
        yield opened
    finally:
        for tracker in opened:
            tracker.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for one that is not installed or is none, before anything is made."""
    for name in names:
        _writer_class() if name == "tensorboard" else _module(name)


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        hint = "pip install 'featurecache[track]'"
        raise UsageError("--track tensorboard needs the package tensorboard", hint=hint) from None
    return SummaryWriter


def _module(name: str) -> Any:
    """One with the functions of wandb."""
    try:
        module = importlib.import_module(name)
    except (ImportError, ValueError) as error:
        hint = f"pip install {name}, or give --track tensorboard"
        raise UsageError(f"there is no tracker {name!r}: {error}", hint=hint) from None
    if missing := [function for function in ("init", "log", "finish") if not hasattr(module, function)]:
        message = f"{name!r} is no tracker: it has no {missing[0]}()"
        raise UsageError(message, hint="give tensorboard, wandb, trackio, or another module with init, log and finish")
    return module


class _TensorBoard:
    def __init__(self, name: str, run: Path, recipe: Json, step: int) -> None:
        # what an interrupted run told of later steps than its checkpoint is told anew
        self._writer: Any = _writer_class()(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandbLike:
    def __init__(self, name: str, run: Path, recipe: Json, step: int) -> None:
        self._module = _module(name)
        given = {
            "project": _PROJECT,
            "name": run.name,
            "config": recipe,
            "resume": "allow",
            "dir": str(run),
            "id": _identity(run),  # by which wandb finds what an interrupted run has told
            "reinit": "create_new",  # several students have a curve each
        }
        known = inspect.signature(self._module.init).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the run's own result
            begun = self._module.init(**{key: value for key, value in given.items() if takes_all or key in known})
        self._run = begun if hasattr(begun, "log") and hasattr(begun, "finish") else self._module

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def _identity(run: Path) -> str:
    """The same as long as the run directory is, and another where a run was removed and begun anew."""
    recipe = run / "recipe.json"
    begun = recipe.stat().st_mtime_ns if recipe.exists() else 0
    return hashlib.sha256(f"{run.absolute()} {begun}".encode()).hexdigest()[:16]
