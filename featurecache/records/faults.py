"""Records whose numbers cannot be what they are said to be: collected over a whole file, and told at once."""

from collections.abc import Sequence

import numpy as np

from featurecache.errors import UsageError
from featurecache.records.form import Kind

__all__ = ["Faults"]

_HINTS = {
    "logits": "leave these records out: their samples are then rows without an output",
    "probabilities": "probabilities are from 0 to 1 and sum to 1; say --are logits if these are logits",
}


class Faults:
    """How many records have numbers that cannot be, and the first of them."""

    def __init__(self, are: Kind, tolerance: float) -> None:
        """`tolerance` is how far a sum of probabilities may be from 1."""
        self._are, self._tolerance = are, tolerance
        self._first = ""
        self.count = 0
        """Records so far that cannot be."""

    def look(self, keys: Sequence[str], numbers: np.ndarray) -> None:
        """Look at some records: float64 (records, classes)."""
        is_finite = np.isfinite(numbers).all(axis=1)
        bad = ~is_finite
        if self._are == "probabilities":
            sums = np.where(is_finite, numbers.sum(axis=1, where=np.isfinite(numbers)), 1.0)
            bad |= (numbers < 0).any(axis=1) | (np.abs(sums - 1) > self._tolerance)
        found = np.flatnonzero(bad)
        if found.size and not self.count:
            self._first = f"the record of {keys[found[0]]!r} {self._said(numbers[found[0]])}"
        self.count += int(found.size)

    def tell(self, records: int) -> None:
        """Raises UsageError if there were any among so many records."""
        if self.count:
            several = f"; {self.count:,} of {records:,} records are no {self._are}" if self.count > 1 else ""
            raise UsageError(f"{self._first}{several}", hint=_HINTS[self._are])

    def _said(self, numbers: np.ndarray) -> str:
        if not np.isfinite(numbers).all():
            return f"has a number that is not finite: {numbers[~np.isfinite(numbers)][0]}"
        if (numbers < 0).any():
            return f"has a negative probability: {numbers.min():g}"
        return f"has probabilities that sum to {numbers.sum():.6g}, not to 1 (--tolerance {self._tolerance:g})"
