"""Targets whose embeddings are brought to one scale on the device."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from featurecache.types import OutputSpec
from student.balance import Balance
from student.targets.base import Targets, Values

__all__ = ["Balanced"]


@dataclass(frozen=True, slots=True)
class Balanced:
    """The same targets, some of them balanced."""

    targets: Targets
    balances: Mapping[str, Balance]
    """By the names of outputs that are dense."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """What there is."""
        return self.targets.outputs

    @property
    def stored_bytes(self) -> int:
        """Bytes of one view of all rows, in files."""
        return self.targets.stored_bytes

    @property
    def is_even(self) -> bool:
        """Whether all rows are of one length."""
        return self.targets.is_even

    def gather(
        self,
        plan: Iterable[np.ndarray],
        *,
        views: Iterable[np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
        device: torch.device,
    ) -> Iterator[Values]:
        """As `Targets.gather`."""
        moved = {name: balance.to(device) for name, balance in self.balances.items()}
        batches = self.targets.gather(plan, views=views, outputs=outputs, device=device)
        return (_balanced(batch, moved) for batch in batches)

    def read(
        self,
        rows: np.ndarray,
        *,
        view: int | np.ndarray = 0,
        outputs: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Values:
        """As `Targets.read`."""
        values = self.targets.read(rows, view=view, outputs=outputs, device=device)
        return _balanced(values, {name: self.balances[name].to(device) for name in values if name in self.balances})

    def will_need(self, rows: np.ndarray, *, view: int | np.ndarray = 0) -> None:
        """As `Targets.will_need`."""
        self.targets.will_need(rows, view=view)

    def held_on(self, device: torch.device, rows: np.ndarray, *, views: int) -> "Balanced":
        """As `Targets.held_on`; held as they are encoded, and balanced batch by batch."""
        return replace(self, targets=self.targets.held_on(device, rows, views=views))


def _balanced(values: Values, balances: Mapping[str, Balance]) -> Values:
    return {
        name: balances[name].apply(value) if name in balances and isinstance(value, Tensor) else value
        for name, value in values.items()
    }
