"""Parquet files as one table: row groups are walked through a batch at a time, and the last batches are kept."""

import bisect
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.errors import SourceError, UsageError
from featurecache.sources.table_columns import class_labels

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["ParquetTable", "need_pyarrow"]

_KEPT_BYTES = 256 * 2**20
"""Decoded batches that a process keeps, over all columns."""
_BATCH_ROWS = 256
_BATCH_BYTES = 8 * 2**20
"""What is decoded at once has at most so many rows, and fewer where the file says that its rows are large."""
_MAX_FILES = 16
_OF_A_PROCESS = ("_open", "_kept", "_kept_bytes", "_firsts", "_walks")


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a column, and how many of its rows are decoded at once."""

    file: int
    number: int
    column: str
    field: str | None
    batch_rows: int

    @property
    def path(self) -> str:
        """The column's name as Parquet has it."""
        return self.column if self.field is None else f"{self.column}.{self.field}"


class ParquetTable:
    """Files sorted by name, rows in their order.

    Raises SourceError for one that is damaged, or has other columns or class names; UsageError without pyarrow.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        need_pyarrow("a .parquet file")
        self.paths = tuple(sorted((Path(path).absolute() for path in paths), key=lambda path: (path.name, str(path))))
        self.name = str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more"
        self._fresh()
        files, numbers, counts, batches = [], [], [0], []
        for file, path in enumerate(self.paths):
            metadata, schema = _read_footer(path)
            if file == 0:
                self.schema: pa.Schema = schema
            elif not schema.equals(self.schema):
                raise SourceError(f"{path} has other columns than {self.paths[0]}", hint="give files of one data set")
            elif class_labels(schema) != class_labels(self.schema):
                message = f"{path} has other class names than {self.paths[0]}"
                raise SourceError(message, hint="give files of one data set: an index would mean two classes")
            for number in range(metadata.num_row_groups):
                files.append(file)
                numbers.append(number)
                counts.append(metadata.row_group(number).num_rows)
                batches.append(_batch_rows(metadata.row_group(number)))
        self._file, self._number = np.array(files, np.int64), np.array(numbers, np.int64)
        self._batch_rows = np.array(batches, np.int64)
        self._starts = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_A_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fresh()

    def read(self, column: str, start: int, stop: int, *, field: str | None = None) -> "pa.ChunkedArray":
        """Rows [start, stop) of a column or of a field of it, one at least. Raises OSError, ArrowException."""
        import pyarrow as pa

        if self._process != os.getpid():
            self._fresh()  # a forked worker reads through handles of its own
        pieces: list[pa.Array] = []
        for at in range(int(np.searchsorted(self._starts, start, "right")) - 1, len(self._file)):
            first, last = int(self._starts[at]), int(self._starts[at + 1])
            if first >= stop:
                break
            group = _Group(int(self._file[at]), int(self._number[at]), column, field, int(self._batch_rows[at]))
            pieces += self._rows(group, max(start, first) - first, min(stop, last) - first)
        return pa.chunked_array(pieces)

    def place(self, row: int) -> str:
        """The file, and the row counted from 1 in it."""
        file, number = self._find(row)
        return f"row {number} of {self.paths[file]}"

    def row_key(self, row: int) -> str:
        """ "row-3", behind the file's name where there are several."""
        file, number = self._find(row)
        return f"{self.paths[file].stem}/row-{number}" if len(self.paths) > 1 else f"row-{number}"

    def path_key(self, path: str) -> str:
        """The path as the file has it."""
        return path

    def read_file(self, path: str) -> bytes | None:
        """Nothing: a file that comes from elsewhere must not make this process read others."""
        return None

    def _fresh(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._kept: OrderedDict[tuple[_Group, int], pa.Array] = OrderedDict()
        self._kept_bytes = 0
        self._firsts: dict[_Group, list[int]] = {}
        self._walks: dict[tuple[str, str | None], _Walk] = {}

    def _find(self, row: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        file = int(self._file[group])
        first = int(self._starts[int(np.argmax(self._file == file))])
        return file, row - first + 1

    def _rows(self, group: _Group, start: int, stop: int) -> "list[pa.Array]":
        pieces = []
        while start < stop:
            first, batch = self._batch(group, start)
            pieces.append(batch.slice(start - first, stop - start))
            start = first + len(batch)
        return pieces

    def _batch(self, group: _Group, row: int) -> "tuple[int, pa.Array]":
        """The batch that has a row of a group, and its first row: one that is kept, or found by walking there."""
        firsts = self._firsts.setdefault(group, [0])
        first = firsts[bisect.bisect_right(firsts, row) - 1]
        kept = self._kept.get((group, first))
        if kept is not None and row < first + len(kept):
            self._kept.move_to_end((group, first))
            return first, kept
        walk = self._walks.pop((group.column, group.field), None)  # one that raises is not gone on with
        if walk is None or walk.group != group or walk.row > row:
            walk = _Walk(group, self._batches(group))
        while walk.row <= row:
            first, batch = walk.row, walk.advance()
            self._keep(group, first, batch)
        self._walks[group.column, group.field] = walk
        return first, batch

    def _keep(self, group: _Group, first: int, batch: "pa.Array") -> None:
        """Add a batch to those that are kept; the ones that were used least recently go."""
        firsts = self._firsts[group]
        if first > firsts[-1]:
            firsts.append(first)
        if (group, first) not in self._kept:
            self._kept[group, first] = batch
            self._kept_bytes += batch.nbytes
        while len(self._kept) > 1 and self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes

    def _batches(self, group: _Group) -> "Iterator[pa.Array]":
        import pyarrow.compute as pc

        which = {"row_groups": [group.number], "columns": [group.path]}
        for batch in self._handle(group.file).iter_batches(group.batch_rows, **which, use_threads=False):
            column = batch.column(0)
            yield column if group.field is None else pc.struct_field(column, group.field)

    def _handle(self, file: int) -> "pq.ParquetFile":
        import pyarrow.parquet as pq

        if file not in self._open:
            self._open[file] = pq.ParquetFile(
                self.paths[file], pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
            )
            if len(self._open) > _MAX_FILES:
                self._open.popitem(last=False)
        return self._open[file]


class _Walk:
    """One row group from its start to its end, a batch at a time."""

    def __init__(self, group: _Group, batches: "Iterator[pa.Array]") -> None:
        self.group, self._batches = group, batches
        self.row = 0
        """The first row of the next batch."""

    def advance(self) -> "pa.Array":
        """The next batch. Raises OSError where there is none."""
        batch = next(self._batches, None)
        if batch is None or not len(batch):
            raise OSError("a row group has fewer rows than its file says")
        self.row += len(batch)
        return batch


def need_pyarrow(what: str) -> None:
    """Raises UsageError, with the line that installs it, where the extra `hub` is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        hint = "pip install 'featurecache[hub]'"
        raise UsageError(f"{what} needs the package pyarrow, which is not installed", hint=hint) from None


def _read_footer(path: Path) -> "tuple[pq.FileMetaData, pa.Schema]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as parquet: {error}", hint="copy or build it again") from error


def _batch_rows(group: "pq.RowGroupMetaData") -> int:
    """Rows to decode at once, by the size that the file gives; repeated values can make them larger than that."""
    return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size))))
