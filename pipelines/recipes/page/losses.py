"""Validation losses of a recipe's stages over their updates, from the runs that results.json names."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featurecache.errors import CorruptCacheError, UsageError
from pipelines.recipes.page.read_results import Arm, Case
from pipelines.run_dir import RunDir

__all__ = ["Curve", "StageLosses", "read_losses"]

_HINT = "keep the runs of a recipe inside its --out"


@dataclass(frozen=True, slots=True)
class Curve:
    """The losses of one stage of an arm, at the steps at which all of its seeds were validated."""

    arms: tuple[str, ...]
    """Several where they share these very runs."""
    seeds: int
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Over the seeds, at each step."""


@dataclass(frozen=True, slots=True)
class StageLosses:
    """The curves of one stage."""

    stage: str
    curves: tuple[Curve, ...]
    missing: tuple[tuple[str, int], ...]
    """(arm, seed) of runs without a validation."""


def read_losses(folder: Path, case: Case) -> list[StageLosses]:
    """Every stage of a case, in the order in which the arms name them.

    A run that is not there, or has no whole metrics, is missing. Raises UsageError for one that is not inside `folder`.
    """
    names = dict.fromkeys(stage.name for arm in case.arms for stage in arm.stages)
    return [_stage(folder, case, name) for name in names]


def _stage(folder: Path, case: Case, name: str) -> StageLosses:
    curves, missing = [], []
    for runs, arms in _sharing(case, name).items():
        losses = [_validations(folder, run) for run in runs]
        for arm in arms:
            missing += [(arm.name, seed) for seed, found in zip(arm.seeds, losses, strict=True) if not found]
        if curve := _curve([arm.name for arm in arms], [found for found in losses if found]):
            curves.append(curve)
    return StageLosses(name, tuple(curves), tuple(missing))


def _sharing(case: Case, name: str) -> dict[tuple[str | None, ...], list[Arm]]:
    """The arms that have the stage, by the runs of their seeds: arms that begin alike share what they begin with."""
    arms_of: dict[tuple[str | None, ...], list[Arm]] = {}
    for arm in case.arms:
        for number, stage in enumerate(arm.stages):
            if stage.name == name:
                arms_of.setdefault(tuple(folders[number] for folders in arm.runs), []).append(arm)
    return arms_of


def _curve(arms: Sequence[str], losses: Sequence[Mapping[int, float]]) -> Curve | None:
    """None where there is no step at which all seeds were validated."""
    steps = sorted(set.intersection(*map(set, losses))) if losses else []
    if not steps:
        return None
    at = [[found[step] for found in losses] for step in steps]
    return Curve(
        arms=tuple(arms),
        seeds=len(losses),
        steps=tuple(steps),
        mean=tuple(statistics.fmean(values) for values in at),
        low=tuple(min(values) for values in at),
        high=tuple(max(values) for values in at),
    )


def _validations(folder: Path, run: str | None) -> Mapping[int, float]:
    """The validation losses of a run by step; none where it has none that can be read."""
    if run is None:
        return {}
    try:
        return RunDir(_inside(folder, run)).validation_losses()
    except (CorruptCacheError, OSError):
        return {}


def _inside(folder: Path, run: str) -> Path:
    """Where a run is whose metrics nobody but `folder` holds. Raises UsageError."""
    parts = PurePosixPath(run).parts
    place = folder.joinpath(*parts)
    if run.startswith("/") or "\\" in run or "\0" in run or ".." in parts or not parts:
        raise UsageError(f"results.json names a run outside its folder: {run[:200]!r}", hint=_HINT)
    metrics = place / "metrics.jsonl"
    for path in (metrics, *metrics.parents[: len(parts)]):
        if path.is_symlink():
            raise UsageError(f"{path} is a link, and is not followed", hint=_HINT)
    return place
