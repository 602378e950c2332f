"""Outputs of some rows held on a device as they are encoded: a batch is chosen and decoded there, and nobody waits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from featurecache.errors import UsageError
from featurecache.store.gather import Column, Rows, arrays_of
from featurecache.store.view_parts import ViewParts
from featurecache.transfer import Transfer
from featurecache.types import ArraySpec

__all__ = ["Held"]

_CHUNK_BYTES = 2**26
"""Of an array on its way to the device: all that is in memory a second time."""


class Held:
    """What a `CacheReader` gives of some rows in their first views, without the disk."""

    def __init__(self, columns: Sequence[Column], rows: np.ndarray, *, views: int, device: torch.device) -> None:
        """Read all of it: `rows` int64 (n,), each once, in views 0 to `views` - 1.

        Raises what reading does, and UsageError for arrays whose rows are not all of one length.
        """
        self.device = device
        self._transfer = Transfer(device)
        self._columns = {column.name: column.on(device) for column in columns}
        self._place = np.full(int(rows.max(initial=-1)) + 1, -1)
        self._place[rows] = np.arange(rows.size)
        self._views = views
        self._rows = rows.size
        self._arrays = {key: self._room(array) for key, (_, array) in arrays_of(columns)}
        widest = max((array.row_bytes for _, (_, array) in arrays_of(columns)), default=1)
        step = max(_CHUNK_BYTES // widest, 1)
        for view in range(views):
            for start in range(0, rows.size, step):
                self._load(columns, rows[start : start + step], view, view * rows.size + start)

    @property
    def stored_bytes(self) -> int:
        """Bytes on the device."""
        return sum(array.nbytes for array in self._arrays.values())

    def gather(
        self,
        plan: Iterable[np.ndarray],
        *,
        views: Iterable[np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Iterator[Rows]:
        """What `read` gives for each batch of rows of a plan; `views` has int64 (batch,) for each."""
        if views is None:
            return (self.read(rows, outputs=outputs) for rows in plan)
        return (self.read(rows, view=view, outputs=outputs) for rows, view in zip(plan, views, strict=False))

    def read(self, rows: np.ndarray, *, view: int | np.ndarray = 0, outputs: Sequence[str] | None = None) -> Rows:
        """Outputs of some rows (int64), decoded: what the reader gives, to the last bit. Raises UsageError for rows or
        views that are not held."""
        columns = [self._columns[name] for name in (self._columns if outputs is None else outputs)]
        index = self._transfer.send(self._index(rows, view))
        chosen = {key: _select(self._arrays[key], index) for key, _ in arrays_of(columns)}
        return {column.name: column.decode(chosen) for column in columns}

    def _index(self, rows: np.ndarray, view: int | np.ndarray) -> np.ndarray:
        """int64 (batch,): where in the arrays they are."""
        known = self._place[rows] if not rows.size or rows.max() < len(self._place) else np.full(1, -1)
        views = np.asarray(view)
        if known.size and (known.min() < 0 or not 0 <= views.min() <= views.max() < self._views):
            raise UsageError(f"only {self._rows:,} rows in {self._views} views are held on {self.device}")
        return known + views * self._rows

    def _room(self, array: ArraySpec) -> Tensor:
        if array.longest:
            raise UsageError(f"the rows of {array.name} differ in length, and are not held on a device")
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        return torch.empty((self._views * self._rows, *array.shape), dtype=dtype, device=self.device)

    def _load(self, columns: Sequence[Column], rows: np.ndarray, view: int, at: int) -> None:
        """Copy some rows of one view to their place, once they are checked."""
        arrays: Mapping[str, tuple[ViewParts, ArraySpec]] = dict(arrays_of(columns))
        taken = {key: torch.from_numpy(part.take(array, rows, view=view)) for key, (part, array) in arrays.items()}
        for column in columns:
            column.check(taken)
        for key, values in taken.items():
            self._arrays[key][at : at + rows.size].copy_(values)


def _select(array: Tensor, index: Tensor) -> Tensor:
    if array.dtype == torch.uint16:  # not every device chooses rows of it
        return array.view(torch.int16).index_select(0, index).view(torch.uint16)
    return array.index_select(0, index)
