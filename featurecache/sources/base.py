"""The contract of a source: a fixed, ordered set of encoded samples with random and sequential access."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from featurecache.types import Modality, Sample

__all__ = ["Source"]


@runtime_checkable
class Source(Protocol):
    """A fixed, ordered set of samples. It can be pickled (loader workers get a copy) and opens files lazily.

    Opening a source lists its samples; it does not read their contents where that can be avoided. Order is canonical
    (sorted paths; sorted tar names, then member order; line order), so two machines agree on it.
    """

    modality: Modality
    class_names: tuple[str, ...]
    """Names of the label indices in order; empty where the source has no labels."""
    keys: Sequence[str]
    """One unique, stable key for each sample."""
    labels: np.ndarray
    """int64 (samples,): class index, or NO_LABEL."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read one sample. Never raises for bad content: that is found when it is decoded, or told by `problem`."""
        ...

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order, read sequentially."""
        ...

    def fingerprint(self) -> str:
        """`fingerprint.hash_rows` over (key, byte size of `encoded`) of every sample."""
        ...
