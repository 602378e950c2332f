"""Targets of one cache: read from its files, a few batches ahead, or from a device that holds them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from featurecache.store.reader import CacheReader
from featurecache.types import OutputSpec
from student.targets.base import Values

if TYPE_CHECKING:
    from featurecache.store.held import Held

__all__ = ["FromCache"]


@dataclass(frozen=True)
class FromCache:
    """Some outputs of a split."""

    reader: CacheReader
    names: Mapping[str, str]
    """The name that the student knows an output by, to the one that the cache has it under."""
    held: "Held | None" = None
    """The rows that a device holds, instead of the files."""

    @cached_property
    def outputs(self) -> dict[str, OutputSpec]:
        """What there is."""
        return {name: self.reader.outputs[stored] for name, stored in self.names.items()}

    @property
    def stored_bytes(self) -> int:
        """Bytes of one view of all rows, in files."""
        return 0 if self.held is not None else self.reader.stored_bytes(self._stored(None))

    @property
    def is_even(self) -> bool:
        """Whether all rows are of one length."""
        return self.reader.is_even(self._stored(None))

    def gather(
        self,
        plan: Iterable[np.ndarray],
        *,
        views: Iterable[np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
        device: torch.device,
    ) -> Iterator[Values]:
        """As `Targets.gather`."""
        stored = self._stored(outputs)
        if self.held is not None:
            batches = self.held.gather(plan, views=views, outputs=stored)
        else:
            batches = self.reader.gather(plan, views=views, outputs=stored, device=device)
        return (self._named(batch, outputs) for batch in batches)

    def read(
        self,
        rows: np.ndarray,
        *,
        view: int | np.ndarray = 0,
        outputs: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Values:
        """As `Targets.read`; from the files, which have every row."""
        return self._named(self.reader.read(rows, view=view, outputs=self._stored(outputs), device=device), outputs)

    def will_need(self, rows: np.ndarray, *, view: int | np.ndarray = 0) -> None:
        """As `Targets.will_need`."""
        if self.held is None:
            self.reader.will_need(rows, view=view, outputs=self._stored(None))

    def held_on(self, device: torch.device, rows: np.ndarray, *, views: int) -> "FromCache":
        """As `Targets.held_on`."""
        return replace(self, held=self.reader.held(rows, views=views, outputs=self._stored(None), device=device))

    def _stored(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        return tuple(self.names[name] for name in (self.names if outputs is None else outputs))

    def _named(self, values: Values, outputs: Sequence[str] | None) -> Values:
        return {name: values[self.names[name]] for name in (self.names if outputs is None else outputs)}
