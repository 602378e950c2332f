"""All records of a file: their keys, and their numbers as logits, in a file that is mapped and not in memory."""

import hashlib
import itertools
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from featurecache.errors import SourceError, UsageError
from featurecache.records.columns import find_form
from featurecache.records.faults import Faults
from featurecache.records.files import Row, read_rows
from featurecache.records.form import Form, Kind
from featurecache.records.log_probabilities import log_probabilities
from featurecache.sources.listing import key_hashes
from featurecache.sources.packed import Keys, Packer

__all__ = ["Records", "read_records"]

_BLOCK = 1024
"""Records that are looked at together."""


@dataclass(frozen=True, slots=True)
class Records:
    """What a file says of samples."""

    keys: Keys
    """Of the records, in the order of the file, as `Form.key_of` gives them; none of them twice."""
    logits: np.ndarray
    """float32 (records, classes), read only: the numbers, or the logarithms of what are probabilities."""
    form: Form
    sha256: str
    """Of the file."""

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, split: str, keys: Sequence[str]) -> np.ndarray:
        """int64 (keys,): the record about each sample of a split, -1 where there is none."""
        mine, wanted = key_hashes(self.keys), key_hashes(self.form.joined(split, key) for key in keys)
        order = np.argsort(mine)
        found = order[np.minimum(np.searchsorted(mine, wanted, sorter=order), len(order) - 1)]
        return np.where(mine[found] == wanted, found, -1)


def read_records(
    path: Path | str,
    *,
    key_column: str | None = None,
    are: Kind | None = None,
    classes: Sequence[str] | None = None,
    data_classes: Sequence[str] = (),
    tolerance: float = 1e-3,
) -> Records:
    """Read a .jsonl, .csv (also .gz) or .parquet file to its end; `find_form` says how.

    Sums of probabilities may be as far from 1 as `tolerance` says. Raises SourceError for a file that cannot be read or
    a record that is none, UsageError for keys that stand twice or numbers that are not finite or no probabilities.
    """
    path = Path(path)
    rows, seen = read_rows(path), _state(path)
    first = next(rows, None)
    if first is None:
        raise SourceError(f"{path} has no records", hint="is it complete?")
    form = find_form(first, key_column=key_column, are=are, classes=classes, data_classes=data_classes)
    faults, packer = Faults(form.are, tolerance), Packer()
    with tempfile.TemporaryFile() as file:
        for keys, numbers in _blocks(itertools.chain([first], rows), form):
            faults.look(keys, numbers)
            for key in keys:
                packer.append(key.encode())
            if not faults.count:
                file.write((log_probabilities if form.are == "probabilities" else _narrowed)(numbers).data)
        found = Keys(packer.pack())
        faults.tell(len(found))
        _check_distinct(found, path)
        logits = _mapped(file, form.classes.size)
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if _state(path) != seen:
        raise SourceError(f"{path} was changed while it was read", hint="run it again when it is whole")
    return Records(found, logits, form, sha256)


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _mapped(file: IO[bytes], width: int) -> np.ndarray:
    """float32 (rows, width), read only: what is in a file without a name, which goes when nothing maps it any more."""
    file.flush()
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(content, np.float32).reshape(-1, width)


def _blocks(rows: Iterator[Row], form: Form) -> Iterator[tuple[list[str], np.ndarray]]:
    """Keys, and numbers as float64 (records, classes), of some records at a time. Raises SourceError."""
    while block := list(itertools.islice(rows, _BLOCK)):
        keys, numbers = [], np.empty((len(block), form.classes.size))
        for at, row in enumerate(block):
            try:
                keys.append(form.key_of(row.values))
                numbers[at] = form.numbers(row.values)
            except ValueError as error:
                of = f", the record of {keys[at]!r}" if at < len(keys) else ""
                raise SourceError(f"{row.place}{of}: {error}", hint=_HINT) from None
        yield keys, numbers


_HINT = "every record has a key and a number for each class; --key-column and --classes name their columns"


def _narrowed(numbers: np.ndarray) -> np.ndarray:
    """As float32; what is beyond it is infinite, and its row has no output."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def _check_distinct(keys: Keys, path: Path) -> None:
    """Raises UsageError where two records have the same key."""
    _, first, counts = np.unique(key_hashes(keys), return_index=True, return_counts=True)
    again = np.sort(first[counts > 1])
    if again.size:
        several = f", and so it is with {again.size:,} keys" if again.size > 1 else ""
        message = f"{path} has more than one record of {keys[int(again[0])]!r}{several}"
        raise UsageError(message, hint="keep one record of each sample")
