"""One part as it lies on disk: arrays mapped when first used, each inner chunk checked when first touched."""

import math
from collections.abc import Mapping, Sequence

import google_crc32c
import numpy as np

from featurecache.errors import CorruptCacheError, IncompleteError, UsageError
from featurecache.store.commit import CommitRecord, read_records
from featurecache.store.layout import OFFSETS, PartSpec, inner_rows, shard_key
from featurecache.store.mapped import map_shards, will_need
from featurecache.store.objects import LocalObjects
from featurecache.store.parts import check_array
from featurecache.types import ArraySpec

__all__ = ["PartReader", "padded"]

_HINT = "run the same `fc extract` again to add what is missing"


class PartReader:
    """The committed rows of one part, as arrays."""

    def __init__(self, objects: LocalObjects, part: PartSpec, *, trust: bool = False) -> None:
        self.part = part
        self.records: dict[tuple[int, int], CommitRecord] = read_records(objects, part)
        """The committed shards, as they were when this was opened."""
        self._objects = objects
        self._trust = trust
        self._arrays: dict[str, _MappedArray] = {}

    def take(
        self, array: ArraySpec, rows: np.ndarray, *, view: "int | np.ndarray" = 0, out: np.ndarray | None = None
    ) -> np.ndarray:
        """(rows, *shape): a copy of some rows (int64) of an array, in the order asked for; of a ragged array (rows,
        longest of them, *shape), with zeros behind the elements of each.

        `view` is that of all rows, or int64 (rows,) for each of them. It is written into `out`, C-contiguous and of the
        array's dtype, if one is given: a buffer that is used again is filled several times faster than new memory.
        """
        slot = self._slot(rows, view)
        if array.longest:
            return padded(self._ragged(array, rows, view), array, out)
        return self._mapped(array.name).take(rows, slot, out)

    def lengths(self, rows: np.ndarray, *, view: "int | np.ndarray" = 0) -> np.ndarray:
        """int64 (rows,): how many elements these rows (int64) have in each ragged array of a teacher's part.

        They are not trusted: `take` raises CorruptCacheError for what cannot be.
        """
        offsets = self.take(OFFSETS, rows, view=view)
        return offsets[:, 1] - offsets[:, 0]

    def check(self, array: ArraySpec, rows: np.ndarray, *, view: "int | np.ndarray" = 0) -> None:
        """Raises what `take` would, before anybody makes room for these rows."""
        slot = self._slot(rows, view)
        if array.longest:
            self._ragged(array, rows, view)
        else:
            self._mapped(array.name).check(rows, slot)

    def whole(self, name: str, *, view: int = 0) -> np.ndarray:
        """(rows of the split, *shape): a whole array."""
        return self.take(self.part.array(name), np.arange(self.part.rows), view=view)

    def elements(self, name: str, offsets: np.ndarray) -> list[np.ndarray]:
        """Elements [start, stop) of a ragged array without views for each row of `offsets`, int64 (rows, 2)."""
        return self._mapped(name).elements(offsets)

    def will_need(self, array: ArraySpec, rows: np.ndarray, *, view: "int | np.ndarray" = 0) -> None:
        """Have the system begin to read the inner chunks in which these rows (int64, all there are) lie."""
        if array.longest:
            self._mapped(array.name).will_need_elements(self.take(OFFSETS, rows, view=view), self._view_slot(view))
        else:
            self._mapped(array.name).will_need(rows, self._view_slot(view))

    def stored_bytes(self, array: ArraySpec) -> int:
        """Bytes of an array over all rows of its first view: of a ragged one, those of its shards."""
        if not array.longest:
            return self.part.rows * array.row_bytes
        first, place = (self.part.views or (0, 1))[0], self.part.arrays.index(array)
        return sum(record.payloads[place].bytes for (view, _), record in self.records.items() if view == first)

    def _ragged(self, array: ArraySpec, rows: np.ndarray, view: "int | np.ndarray") -> list[np.ndarray]:
        """(elements, *shape) of each row, checked and not copied."""
        offsets = self.take(OFFSETS, rows, view=view)
        return self._mapped(array.name).elements(offsets, self._view_slot(view))

    def _mapped(self, name: str) -> "_MappedArray":
        if name not in self._arrays:
            self._arrays[name] = _MappedArray(
                self._objects, self.part, self.part.array(name), self.records, self._trust
            )
        return self._arrays[name]

    def _slot(self, rows: np.ndarray, view: "int | np.ndarray") -> "int | np.ndarray":
        """The slot of a view, or of each of them. Raises UsageError if it is not there, or one of the rows is not."""
        slot = self._view_slot(view)
        # as unsigned numbers negative ones are the largest, so one pass checks both ends
        if rows.size and int(rows.view(np.uint64).max()) >= self.part.rows:
            raise UsageError(f"{self.part.prefix} has rows 0 to {self.part.rows - 1:,}, not all that were asked for")
        return slot

    def _view_slot(self, view: "int | np.ndarray") -> "int | np.ndarray":
        if self.part.views is None:
            return 0
        first, stop = self.part.views
        lowest, highest = (view, view) if isinstance(view, int) else (view.min(initial=first), view.max(initial=first))
        if not first <= lowest <= highest < stop:
            raise UsageError(f"{self.part.prefix} has views {first} to {stop - 1}, not {view}")
        return view - first


class _MappedArray:
    """One array over all its shards and views as an ndarray, with a note of what has been checked."""

    def __init__(
        self,
        objects: LocalObjects,
        part: PartSpec,
        array: ArraySpec,
        records: Mapping[tuple[int, int], CommitRecord],
        trust: bool,
    ) -> None:
        check_array(objects, part, array)
        if not records:  # what part.json alone claims takes no memory
            raise IncompleteError(f"nothing of {part.prefix}/{array.name} is committed", hint=_HINT)
        shard_rows = part.rows_per_shard
        self._inner_rows = inner_rows(array, shard_rows)
        per_shard = shard_rows // self._inner_rows
        in_view = math.ceil(part.rows / shard_rows)
        slots = part.shard_count
        files = {}
        self._name = f"{part.prefix}/{array.name}"
        self._rows = part.rows
        self._view_rows = in_view * shard_rows
        # crc32c of each inner chunk; -1 where there is none
        expected = np.full((slots, per_shard), -1, np.int64)
        for (view, index), record in sorted(records.items()):  # not every shard: a stranger may claim a million
            slot = (view - (part.views or (0, 1))[0]) * in_view + index
            key = shard_key(part, array, record.shard)
            payload = next((payload for payload in record.payloads if payload.key == key), None)
            if payload is None or objects.size(key) != payload.bytes:
                raise CorruptCacheError(f"{key} is not the object that was committed")
            expected[slot, : len(payload.inner)] = payload.inner
            files[slot] = objects.path(key), len(payload.inner) * self._inner_rows * array.row_bytes
        data = map_shards(files, slots=slots, slot_bytes=shard_rows * array.row_bytes)
        row_shape = (array.longest, *array.shape) if array.longest else array.shape
        self.values = data.view(np.dtype(array.dtype).newbyteorder("<")).reshape(slots * shard_rows, *row_shape)
        assert self.values.flags.c_contiguous and self.values.flags.aligned  # else np.take copies the whole array first
        self._expected = expected.reshape(-1)
        self._checked = np.full(self._expected.shape, trust) & (self._expected >= 0)
        self._all_checked = self._checks_done()

    def take(self, rows: np.ndarray, slot: int | np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """A copy of some rows of the view in a slot; rows and slot were range-checked by the caller."""
        self.check(rows, slot)
        # "clip" lets numpy write straight into the result; the range was checked above
        if isinstance(slot, int):
            view = self.values[slot * self._view_rows :][: self._rows]  # without the padding of its last shard
            return view.take(rows, axis=0, out=out, mode="clip")
        return self.values.take(rows + slot * self._view_rows, axis=0, out=out, mode="clip")

    def check(self, rows: np.ndarray, slot: int | np.ndarray) -> None:
        """Raises IncompleteError or CorruptCacheError unless the inner chunks of these rows are as committed."""
        if not self._all_checked:
            self._check_new(self._chunks(rows, slot))

    def elements(self, offsets: np.ndarray, slot: int | np.ndarray = 0) -> list[np.ndarray]:
        """Elements [start, stop) for each row of `offsets`, which count from the beginning of its view."""
        found = self._found(offsets, slot)
        self._check_new(self._chunks_of(found))
        flat = self.values.reshape(-1, *self.values.shape[2:])
        return [flat[start:stop] for start, stop in found]

    def _found(self, offsets: np.ndarray, slot: int | np.ndarray) -> np.ndarray:
        """int64 (rows, 2): the same offsets, from the beginning of the array."""
        starts, stops = offsets[:, 0], offsets[:, 1]
        longest = self.values.shape[1]
        room = self._view_rows * longest
        if ((starts < 0) | (stops < starts) | (stops > room) | (stops - starts > longest)).any():
            raise CorruptCacheError(f"the offsets of {self._name} lead beyond its rows")
        return offsets + np.reshape(slot, (-1, 1)) * room

    def _chunks_of(self, found: np.ndarray) -> np.ndarray:
        """The inner chunks of elements: one has room for the longest row, so none touches more than two."""
        starts, stops = found[:, 0], found[:, 1]
        filled = stops > starts
        return np.concatenate([starts[filled], stops[filled] - 1]) // (self._inner_rows * self.values.shape[1])

    def will_need_elements(self, offsets: np.ndarray, slot: int | np.ndarray) -> None:
        """The same as `will_need`, of the rows of a ragged array."""
        self._advise(self._chunks_of(self._found(offsets, slot)))

    def will_need(self, rows: np.ndarray, slot: int | np.ndarray) -> None:
        """Advise the system of whole inner chunks, for they are checked whole."""
        self._advise(self._chunks(rows, slot))

    def _advise(self, chunks: np.ndarray) -> None:
        """Neighbours in one call."""
        chunks = np.unique(chunks)
        ends = np.flatnonzero(np.diff(chunks) != 1) + 1
        for run in np.split(chunks, ends) if chunks.size else ():
            will_need(self.values, int(run[0]) * self._inner_rows, int(run[-1] + 1) * self._inner_rows)

    def _chunks(self, rows: np.ndarray, slot: int | np.ndarray) -> np.ndarray:
        """int64 (rows,): the inner chunk of each row."""
        return (rows + slot * self._view_rows) // self._inner_rows

    def _check_new(self, chunks: np.ndarray) -> None:
        if not self._checked[chunks].all():
            self._check(np.unique(chunks[~self._checked[chunks]]))
            self._all_checked = self._checks_done()

    def _check(self, chunks: np.ndarray) -> None:
        absent = chunks[self._expected[chunks] < 0]
        if absent.size:
            raise IncompleteError(f"{self._named(int(absent[0]))} are not committed", hint=_HINT)
        for chunk in chunks:
            rows = self.values[chunk * self._inner_rows : (chunk + 1) * self._inner_rows]
            if google_crc32c.value(rows) != self._expected[chunk]:
                raise CorruptCacheError(f"{self._named(int(chunk))} are not what was committed (crc32c)")
            self._checked[chunk] = True

    def _checks_done(self) -> bool:
        """Whether every row there should be was found good; the end of a view's last shard has no rows to check."""
        per_view = self._checked.reshape(-1, self._view_rows // self._inner_rows)
        return bool(per_view[:, : math.ceil(self._rows / self._inner_rows)].all())

    def _named(self, chunk: int) -> str:
        """The rows of an inner chunk, in words."""
        view, first = divmod(chunk * self._inner_rows, self._view_rows)
        last = min(first + self._inner_rows, self._rows) - 1
        return f"rows {first:,} to {last:,} of {self._name}" + (f" (view slot {view})" if view else "")


def padded(rows: Sequence[np.ndarray], array: ArraySpec, out: np.ndarray | None = None) -> np.ndarray:
    """Rows (elements, *shape) of a ragged array as one (rows, longest of them, *shape), zeros behind each of them."""
    longest = max(map(len, rows), default=0)
    if out is None:
        out = np.empty((len(rows), longest, *array.shape), array.dtype)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
        out[place, len(row) :] = 0
    return out
