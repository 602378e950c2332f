"""The contract of targets: teacher outputs of a cache's rows, in batches on the device that wants them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from featurecache.types import OutputSpec, SparseLogits

__all__ = ["Targets", "Values"]

Values: TypeAlias = dict[str, Tensor | SparseLogits]
"""Outputs by name: float32 (batch, *shape), or sparse logits."""


@runtime_checkable
class Targets(Protocol):
    """Outputs by the names that a student knows them by: "embedding", or "TEACHER/embedding" where there are several.

    Rows are always those of the cache that the samples are joined with.
    """

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """What there is; the specs have the names that the teachers gave."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Bytes of one view of all rows, as they are kept in files; what is held on a device does not count."""
        ...

    @property
    def is_even(self) -> bool:
        """Whether all rows are of one length, so that they can be held on a device."""
        ...

    def gather(
        self,
        plan: Iterable[np.ndarray],
        *,
        views: Iterable[np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
        device: torch.device,
    ) -> Iterator[Values]:
        """Each batch of a plan: rows int64 (batch,), and int64 (batch,) which view of each, 0 by default.

        The plan may be asked for a few batches more than were given out.
        """
        ...

    def read(
        self,
        rows: np.ndarray,
        *,
        view: int | np.ndarray = 0,
        outputs: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Values:
        """Some rows, int64, in memory of their own."""
        ...

    def will_need(self, rows: np.ndarray, *, view: int | np.ndarray = 0) -> None:
        """Have the system begin to fetch these rows, and return at once."""
        ...

    def held_on(self, device: torch.device, rows: np.ndarray, *, views: int) -> "Targets":
        """The same, with these rows in views 0 to `views` - 1 read now and held on a device as they are encoded."""
        ...
