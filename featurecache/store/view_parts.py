"""The parts that hold one output in different views, read as if they were one."""

from collections.abc import Sequence

import numpy as np

from featurecache.errors import UsageError
from featurecache.store.layout import OFFSETS, PartSpec
from featurecache.store.part_reader import PartReader, padded
from featurecache.types import ArraySpec

__all__ = ["ViewParts"]


class ViewParts:
    """Parts of one teacher with the same arrays, each over views of its own."""

    def __init__(self, parts: Sequence[PartReader]) -> None:
        """At least one part, no view in two of them."""
        self.parts = sorted(parts, key=_first_view)

    @property
    def part(self) -> PartSpec:
        """The part of the lowest views."""
        return self.parts[0].part

    @property
    def views(self) -> tuple[range, ...]:
        """Every view there is, in order."""
        return tuple(range(*_range(part)) for part in self.parts)

    @property
    def first_view(self) -> int:
        """The lowest view there is."""
        return _first_view(self.parts[0])

    def take(
        self, array: ArraySpec, rows: np.ndarray, *, view: "int | np.ndarray" = 0, out: np.ndarray | None = None
    ) -> np.ndarray:
        """As `PartReader.take`: `view` is that of all rows, or int64 (rows,) for each of them."""
        if isinstance(view, int) or len(self.parts) == 1:
            return self._part_of(view).take(array, rows, view=view, out=out)
        pieces = [(at, part.take(array, rows[at], view=view[at])) for part, at in self._shares(view)]
        if array.longest:
            every = {int(row): values for at, piece in pieces for row, values in zip(at, piece, strict=True)}
            return padded([every[row] for row in range(len(rows))], array, out)
        found = np.empty((len(rows), *array.shape), array.dtype) if out is None else out
        for at, piece in pieces:
            found[at] = piece
        return found

    def lengths(self, rows: np.ndarray, *, view: "int | np.ndarray" = 0) -> np.ndarray:
        """int64 (rows,): as `PartReader.lengths`."""
        offsets = self.take(OFFSETS, rows, view=view)
        return offsets[:, 1] - offsets[:, 0]

    def check(self, array: ArraySpec, rows: np.ndarray, *, view: "int | np.ndarray" = 0) -> None:
        """Raises what `take` would, before anybody makes room for these rows."""
        if isinstance(view, int):
            return self._part_of(view).check(array, rows, view=view)
        for part, at in self._shares(view):
            part.check(array, rows[at], view=view[at])
        return None

    def whole(self, name: str, *, view: int = 0) -> np.ndarray:
        """(rows of the split, *shape): a whole array in one view."""
        return self._part_of(view).whole(name, view=view)

    def stored_bytes(self, array: ArraySpec) -> int:
        """Bytes of an array over all rows of one view, as they are kept."""
        return self.parts[0].stored_bytes(array)

    def will_need(self, array: ArraySpec, rows: np.ndarray, *, view: "int | np.ndarray" = 0) -> None:
        """Have the system begin to read the inner chunks in which these rows (int64, all there are) lie."""
        if isinstance(view, int):
            return self._part_of(view).will_need(array, rows, view=view)
        for part, at in self._shares(view):
            part.will_need(array, rows[at], view=view[at])
        return None

    def _part_of(self, view: "int | np.ndarray") -> PartReader:
        """The part of a view; the only one, which tells itself what it lacks, or the first if none has it."""
        if len(self.parts) == 1 or not isinstance(view, int):
            return self.parts[0]
        return next((part for part in self.parts if view in range(*_range(part))), self.parts[0])

    def _shares(self, views: np.ndarray) -> list[tuple[PartReader, np.ndarray]]:
        """Each part and which of the rows it has. Raises UsageError if one has no part."""
        found, missing = [], np.ones(len(views), bool)
        for part in self.parts:
            first, stop = _range(part)
            at = np.flatnonzero((views >= first) & (views < stop))
            missing[at] = False
            found += [(part, at)] if at.size else []
        if missing.any():
            raise UsageError(f"{self.part.prefix} has no view {views[missing][0]}")
        return found


def _range(part: PartReader) -> tuple[int, int]:
    return part.part.views or (0, 1)


def _first_view(part: PartReader) -> int:
    return _range(part)[0]
