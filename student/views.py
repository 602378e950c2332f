"""Which views of its samples a student sees in which epoch."""

import functools
from dataclasses import dataclass

import numpy as np

from featurecache.errors import UsageError

__all__ = ["PLAIN", "Views"]

_OFFSETS = 2
"""Keeps these draws apart from those of the order (none) and of the bank."""


@dataclass(frozen=True, slots=True)
class Views:
    """The first `count` views of every sample, `per_sample` of them in an epoch, in turn.

    Each sample begins with a view of its own, so that a batch holds all kinds, and has seen all of them after
    count / per_sample epochs.
    """

    count: int = 1
    per_sample: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.per_sample <= self.count:
            hint = "make more views with `fc extend CACHE --views +N`, or ask for fewer of each sample"
            raise UsageError(f"there are {self.count} views, and no {self.per_sample} of each sample", hint=hint)

    def shown(self, rows: np.ndarray, total: int, *, seed: int, epoch: int) -> np.ndarray:
        """int64 (rows, per_sample): the views of these rows, int64 of `total`, in an epoch: a function of all that."""
        first = _offsets(total, self.count, seed)[rows] + epoch * self.per_sample
        return (first[:, None] + np.arange(self.per_sample)) % self.count


PLAIN = Views()
"""View 0 alone."""


@functools.lru_cache(maxsize=4)
def _offsets(total: int, count: int, seed: int) -> np.ndarray:
    """int64 (total,): the view that each row begins with."""
    return np.random.default_rng((seed, 0, _OFFSETS)).integers(count, size=total)
