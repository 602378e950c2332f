"""The samples of a source and the rows of a cache, matched by key."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from featurecache.errors import UsageError
from featurecache.sources.base import Source
from featurecache.store.reader import CacheReader
from featurecache.types import NO_LABEL

__all__ = ["Elsewhere", "Joined", "join"]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Outputs of the same samples in another cache."""

    reader: CacheReader
    outputs: Sequence[str]
    """By its names for them."""
    row_of: np.ndarray
    """int64 (rows of the first cache,): the row with the same key, -1 for none."""

    def valid(self, view: int) -> np.ndarray:
        """bool (rows of the first cache,): which rows have these outputs, in a view."""
        return (self.row_of >= 0) & self.reader.valid(self.outputs, view=view)[self.row_of]


@dataclass(frozen=True, slots=True)
class Joined:
    """How the samples of a source meet the rows of a cache."""

    rows: np.ndarray
    """int64: usable rows of the cache, ascending."""
    samples: np.ndarray
    """int64: the source's index of each usable row."""
    labels: np.ndarray
    """int64: the source's label of each usable row, NO_LABEL where there is none."""
    invalid: int
    """Rows left out because the teacher has no output for them."""
    missing: int
    """Samples of the source that the cache does not have."""
    changed_labels: int
    """Rows whose label in the source is not the one in the cache; the source's wins."""
    sample_of: np.ndarray
    """int64 (rows of the cache,): the source's index of each, usable or not; -1 where the source has no such sample."""


def join(
    reader: CacheReader,
    source: Source,
    outputs: Sequence[str],
    *,
    views: int = 1,
    missing: Literal["refuse", "skip"] = "refuse",
    max_invalid: float = 0.01,
    others: Sequence["Elsewhere"] = (),
) -> Joined:
    """Match a source to a cache by key, never by position, and leave out rows without valid outputs in all views.

    With `others`, rows that one of them lacks are missing, and those without valid outputs there are left out too.
    Raises UsageError if the source has samples that the cache lacks (unless they may be skipped), if nothing is
    common to both, or if more than `max_invalid` of the common rows are invalid.
    """
    rows = reader.rows_of(source.keys)
    for other in others:
        rows = np.where(other.row_of[rows] < 0, -1, rows)
    absent = np.flatnonzero(rows < 0)
    if absent.size and missing == "refuse":
        message = f"{absent.size:,} of {len(source):,} samples are not in the cache, such as {source.keys[absent[0]]!r}"
        raise UsageError(message, hint="give --missing skip to train without them, or the data the cache was made from")
    samples = np.flatnonzero(rows >= 0)
    samples = samples[np.argsort(rows[samples])]
    common = rows[samples]
    # where labels alone teach, a bad sample is still a bad sample
    usable = np.ones(len(reader), bool)
    for view in range(views):
        usable &= reader.valid(outputs or None, view=view)
        for other in others:
            usable &= other.valid(view)
    usable = usable[common]
    invalid = int(common.size - usable.sum())
    if not usable.any():
        raise UsageError("the data and the cache have no usable sample in common", hint="is this the right --data?")
    if invalid > max_invalid * common.size:
        message = f"{invalid:,} of {common.size:,} rows are invalid, more than --max-invalid {max_invalid:.2%}"
        raise UsageError(message, hint="`fc info CACHE` says why; repair the data, or raise --max-invalid")
    sample_of = np.full(len(reader), -1)
    sample_of[common] = samples
    samples, common = samples[usable], common[usable]
    labels = source.labels[samples].astype(np.int64)
    changed = int((labels != _cached_labels(reader, source.class_names)[common]).sum())
    return Joined(common, samples, labels, invalid, int(absent.size), changed, sample_of)


def _cached_labels(reader: CacheReader, class_names: Sequence[str]) -> np.ndarray:
    """The cache's labels as numbers of these classes; classes of other names become a number that no class has."""
    number = {name: at for at, name in enumerate(class_names)}
    numbers = [number.get(name, len(class_names)) for name in reader.class_names]
    return np.array([*numbers, NO_LABEL], np.int64)[reader.labels]  # the last one is where NO_LABEL points
