"""Parquet files as one table: row groups are decoded when their rows are asked for, and a few are kept."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from featurecache.errors import SourceError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["ParquetTable", "need_pyarrow"]

Column = TypeVar("Column")
"""An Arrow array, whole or in chunks."""

_KEPT_BYTES = 256 * 2**20
"""Decoded row groups that a process keeps, over all columns."""
_LARGE_BYTES = 64 * 2**20
"""A row group whose column is larger is walked through, not decoded at once, as long as reads go forward."""
_BATCH_BYTES = 8 * 2**20
_MAX_FILES = 16


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a column: (file, row group, column, field)."""

    file: int
    number: int
    column: str
    field: str | None

    @property
    def path(self) -> str:
        """The column's name as Parquet has it."""
        return self.column if self.field is None else f"{self.column}.{self.field}"


class ParquetTable:
    """Files sorted by name, rows in their order. Raises SourceError for one that is damaged or has other columns."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        need_pyarrow("a .parquet file")
        self.paths = tuple(sorted((Path(path).absolute() for path in paths), key=lambda path: (path.name, str(path))))
        self.name = str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more"
        self._fresh()
        files, numbers, counts = [], [], [0]
        for file, path in enumerate(self.paths):
            metadata, schema = _read_footer(path)
            if file == 0:
                self.schema: pa.Schema = schema
            elif not schema.equals(self.schema):
                raise SourceError(f"{path} has other columns than {self.paths[0]}", hint="give files of one data set")
            for number in range(metadata.num_row_groups):
                files.append(file)
                numbers.append(number)
                counts.append(metadata.row_group(number).num_rows)
        self._file, self._number = np.array(files, np.int64), np.array(numbers, np.int64)
        self._starts = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_kept", "_walks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fresh()

    def read(self, column: str, start: int, stop: int, *, field: str | None = None) -> "pa.Array":
        """Rows [start, stop) of a column or of a field of it. Raises OSError or ArrowException for damaged ones."""
        import pyarrow as pa

        if self._process != os.getpid():
            self._fresh()  # a forked worker reads through handles of its own
        pieces = []
        for at in range(int(np.searchsorted(self._starts, start, "right")) - 1, len(self._file)):
            first, last = int(self._starts[at]), int(self._starts[at + 1])
            if first >= stop:
                break
            group = _Group(int(self._file[at]), int(self._number[at]), column, field)
            pieces += self._rows(group, max(start, first) - first, min(stop, last) - first, last - first)
        return pa.chunked_array(pieces).combine_chunks() if len(pieces) != 1 else pieces[0]

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
        self._kept: OrderedDict[_Group, pa.ChunkedArray] = OrderedDict()
        self._walks: dict[tuple[str, str | None], _Walk] = {}

    def _find(self, row: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        file = int(self._file[group])
        first = int(self._starts[int(np.argmax(self._file == file))])
        return file, row - first + 1

    def _rows(self, group: _Group, start: int, stop: int, rows: int) -> "list[pa.Array]":
        if group not in self._kept and self._bytes(group) > _LARGE_BYTES:
            walk = self._walks.get((group.column, group.field))
            if walk is None or walk.group != group or walk.is_broken:
                walk = _Walk(group, self._batches(group, max(1, _BATCH_BYTES * rows // self._bytes(group))))
                self._walks[group.column, group.field] = walk
            if start >= walk.first:
                return walk.read(start, stop)
        return self._whole(group).slice(start, stop - start).chunks

    def _whole(self, group: _Group) -> "pa.ChunkedArray":
        """A decoded row group, kept with the most recently used ones."""
        if group not in self._kept:
            table = self._handle(group.file).read_row_group(group.number, columns=[group.path], use_threads=False)
            self._kept[group] = _field(table.column(0), group)
            while len(self._kept) > 1 and sum(array.nbytes for array in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]

    def _batches(self, group: _Group, rows: int) -> "Iterator[pa.Array]":
        handle = self._handle(group.file)
        for batch in handle.iter_batches(rows, row_groups=[group.number], columns=[group.path], use_threads=False):
            yield _field(batch.column(0), group)

    def _bytes(self, group: _Group) -> int:
        """Decoded size of the column in this row group, as the footer has it."""
        metadata = self._handle(group.file).metadata.row_group(group.number)
        columns = (metadata.column(number) for number in range(metadata.num_columns))
        inside = (column for column in columns if _is_part(column.path_in_schema, group.path))
        return max(1, sum(column.total_uncompressed_size for column in inside))

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
        self.group = group
        self.first = 0
        """The first row that can still be read."""
        self.is_broken = True
        """Whether a batch could not be read, or none was yet."""
        self._batches = batches
        self._batch: pa.Array | None = None

    def read(self, start: int, stop: int) -> "list[pa.Array]":
        """Rows [start, stop), none of them before `first`."""
        pieces = []
        while start < stop:
            while self._batch is None or start >= self.first + len(self._batch):
                self._advance()
            inside = min(stop, self.first + len(self._batch)) - start
            pieces.append(self._batch.slice(start - self.first, inside))
            start += inside
        return pieces

    def _advance(self) -> None:
        self.is_broken = True
        following = next(self._batches, None)
        if following is None:
            raise OSError("a row group has fewer rows than its file says")
        self.first += 0 if self._batch is None else len(self._batch)
        self._batch, self.is_broken = following, False


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


def _field(column: Column, group: _Group) -> Column:
    import pyarrow.compute as pc

    return column if group.field is None else pc.struct_field(column, group.field)


def _is_part(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")
