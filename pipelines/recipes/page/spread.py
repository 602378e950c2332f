"""What a few seeds say together: mean, standard deviation, and how far the mean itself is known."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread"]

_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""0.975 quantile of Student's t for 1, 2, … degrees of freedom; beyond the last it stays a little too large."""

_FEWEST = 3
"""Seeds for an interval: that of two is some nine times as wide as what was seen, and says nothing."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Numbers of the seeds that have one."""

    values: tuple[float, ...]
    asked: int
    """How many seeds there are."""

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """Without those that are missing."""
        return cls(tuple(value for value in values if value is not None), len(values))

    @property
    def mean(self) -> float | None:
        """None where there is no value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample (n - 1); None for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95 % t-interval of the mean, if the values are normal; None for fewer than three."""
        count = len(self.values)
        if count < _FEWEST:
            return None
        quantile = _QUANTILES[min(count - 2, len(_QUANTILES) - 1)]
        half = quantile * statistics.stdev(self.values) / count**0.5
        return statistics.fmean(self.values) - half, statistics.fmean(self.values) + half

    @property
    def above(self) -> int:
        """How many are above zero."""
        return sum(value > 0 for value in self.values)

    @property
    def equal(self) -> int:
        """How many are exactly zero."""
        return sum(value == 0 for value in self.values)
