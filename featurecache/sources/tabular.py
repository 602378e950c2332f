"""Samples in the rows of a table: images or texts in one column, labels and ids in others."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.listing import LabelColumn, check_keys, find_repeated
from featurecache.sources.packed import Keys, Packer, narrow
from featurecache.sources.table_columns import Content, find_content, find_id, find_label
from featurecache.sources.text_records import Columns, id_value, label_value
from featurecache.types import NO_LABEL, Json, Modality, Reason, Sample

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Table", "Tabular"]

_SMALL_BLOCK = 4096
_LARGE_BLOCK = 64
"""Rows taken at a time: of labels and ids; of contents."""


@runtime_checkable
class Table(Protocol):
    """Columns of Arrow arrays, read a few rows at a time. It can be pickled, and opens files lazily."""

    name: str
    """What errors call it."""
    schema: "pa.Schema"

    def __len__(self) -> int: ...

    def read(self, column: str, start: int, stop: int, *, field: str | None = None) -> "pa.ChunkedArray":
        """Rows [start, stop) of a column, or of one field of a column of structs.

        Fast where calls go forward. Raises OSError or ArrowException for rows that cannot be read.
        """
        ...

    def place(self, row: int) -> str:
        """Where a row is, for people."""
        ...

    def row_key(self, row: int) -> str:
        """A key for a row that has nothing else to tell it by."""
        ...

    def path_key(self, path: str) -> str:
        """A key from the path of an image: the same on every machine."""
        ...

    def read_file(self, path: str) -> bytes | None:
        """The image at a path that the table gives in place of bytes; None where it may not be read."""
        ...


class Tabular:
    """The rows of a table as samples, in order.

    A key is the row's id; else for images their path in the table, where each has its own; else a hash of the content,
    and for the second and later rows of the same content that hash with "-2", "-3" and so on; else (no content) the
    row's number. Rows without content are told as unreadable. Raises SourceError for columns that are not there, for
    ids that stand twice, for labels that are none, and for a table that cannot be read.
    """

    modality: Modality
    class_names: tuple[str, ...]

    def __init__(self, table: Table, *, columns: Columns, class_names: Sequence[str] | None = None) -> None:
        self._table = table
        self._content: Content = find_content(table.schema, columns, table.name)
        self.modality = self._content.modality
        self._sizes: np.ndarray | None = None
        if not len(table):
            raise SourceError(f"{table.name} has no rows", hint="is it complete?")
        self.labels, self.class_names = self._read_labels(columns, class_names)
        self.keys: Sequence[str] = self._read_keys(find_id(table.schema, columns, table.name))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        """One row; content that is null or cannot be read gives a sample with a problem."""
        row = range(len(self))[index]
        return next(self.iter(row, row + 1))

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        for first in range(start, stop, _LARGE_BLOCK):
            last = min(stop, first + _LARGE_BLOCK)
            try:
                contents = self._contents(first, last)
            except _damage():
                contents = [None] * (last - first)  # the samples say so themselves, and the run goes on
            for row, content in zip(range(first, last), contents, strict=True):
                label = int(self.labels[row])
                problem = Reason.UNREADABLE if content is None else Reason.VALID
                yield Sample(self.keys[row], content or b"", label if label >= 0 else None, problem)

    def fingerprint(self) -> str:
        """Hash of every (key, bytes of content), which are read through for it once."""
        if self._sizes is None:
            self._sizes = narrow(np.fromiter((len(content or b"") for content in self._all_contents()), np.int64))
        return hash_rows(self.keys, map(int, self._sizes))

    def _read_labels(self, columns: Columns, class_names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
        column, names = find_label(self._table.schema, columns, self._table.name)
        labels = LabelColumn()
        for row, value in enumerate(self._small(column) if column else [None] * len(self)):
            try:
                labels.append(_named(label_value(value), names))
            except ValueError as error:
                hint = "a label is a class name or an index; name its column with --label-column"
                raise SourceError(f"{self._table.place(row)}: {error}", hint=hint) from None
        return labels.indices(class_names or names or None, self._table.place)

    def _read_keys(self, column: str | None) -> Keys:
        if column is not None:
            ids = [id_value(value) for value in self._small(column)]
            keys = Keys.of(ids if None not in ids else self._hashes(ids))  # type: ignore[arg-type]
        elif self._content.form == "struct" and (by_path := self._path_keys()):
            return by_path
        else:
            keys = Keys.of(self._hashes([None] * len(self)))
        check_keys(keys, self._table.place, hint="remove one of them, or name another column with --id-column")
        return keys

    def _path_keys(self) -> Keys | None:
        """Keys from the paths of the images; None where some have none, or two the same."""
        if self._table.schema.field(self._content.column).type.get_field_index("path") < 0:
            return None
        keys = Packer()
        for path in self._small(self._content.column, field="path"):
            if not isinstance(path, str) or not path:
                return None
            keys.append(self._table.path_key(path).encode())
        packed = Keys(keys.pack())
        return None if find_repeated(packed) else packed

    def _hashes(self, ids: Sequence[str | None]) -> Iterator[str]:
        """The ids, and in place of those that are None, hashes of the contents, which are read through."""
        sizes = array("q")
        seen: dict[bytes, int] = {}
        for row, content in enumerate(self._all_contents()):
            sizes.append(len(content or b""))
            given = ids[row]
            if given is not None:
                yield given
            elif not content or (self.modality == "text" and not content.strip()):
                yield self._table.row_key(row)
            else:
                digest = hashlib.sha256(content).digest()[:16]
                seen[digest] = seen.get(digest, 0) + 1
                yield digest.hex() + (f"-{seen[digest]}" if seen[digest] > 1 else "")
        self._sizes = narrow(np.frombuffer(sizes, np.int64))

    def _all_contents(self) -> Iterator[bytes | None]:
        for start in range(0, len(self), _LARGE_BLOCK):
            with _told(self._table, start):
                contents = self._contents(start, min(len(self), start + _LARGE_BLOCK))
            yield from contents

    def _small(self, column: str, *, field: str | None = None) -> Iterator[Json]:
        for start in range(0, len(self), _SMALL_BLOCK):
            with _told(self._table, start):
                values = self._table.read(column, start, min(len(self), start + _SMALL_BLOCK), field=field).to_pylist()
            yield from values

    def _contents(self, start: int, stop: int) -> list[bytes | None]:
        values = self._table.read(self._content.column, start, stop)
        if self._content.form == "text":
            return _as_bytes(values)
        if self._content.form == "binary":
            return values.to_pylist()
        return [self._image(value) for value in values.to_pylist()]

    def _image(self, value: Json) -> bytes | None:
        if value is None or value["bytes"] is not None:
            return value and value["bytes"]
        path = value.get("path")
        return self._table.read_file(path) if path else None


def _named(label: str | int | None, names: tuple[str, ...]) -> str | int | None:
    """A class index as the name that the table gives it, so that splits with other numbers agree."""
    if not names or not isinstance(label, int) or label == NO_LABEL:
        return label
    if not 0 <= label < len(names):
        raise ValueError(f"the label {label} is not among the {len(names)} class names of the table")
    return names[label]


def _as_bytes(texts: "pa.ChunkedArray") -> list[bytes | None]:
    """Texts byte for byte, also where they are no UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(texts.type):
        texts = texts.cast(texts.type.value_type)
    return texts.cast(pa.large_binary() if pa.types.is_large_string(texts.type) else pa.binary()).to_pylist()


def _damage() -> tuple[type[Exception], ...]:
    """What is raised for rows that cannot be read."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, OverflowError)  # the last two: no text, no date of Python's


@contextmanager
def _told(table: Table, row: int) -> Iterator[None]:
    try:
        yield
    except _damage() as error:
        raise SourceError(
            f"{table.place(row)} and what follows cannot be read: {error}", hint="copy it again"
        ) from error
