"""Records of .jsonl, .csv and .parquet files, each as a mapping from column to value."""

import csv
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from featurecache.errors import SourceError, UsageError
from featurecache.sources.parquet_files import ParquetTable
from featurecache.sources.text_records import json_object, open_csv, read_lines
from featurecache.types import Json

__all__ = ["Row", "read_rows"]

_FORMATS = (".jsonl", ".csv", ".parquet")
_BLOCK = 1024
"""Rows of a table that are taken at a time."""


class Row(NamedTuple):
    """One record."""

    place: str
    """Where it is, for people."""
    values: Mapping[str, Json]
    """By column, or JSON field; of a .csv all are texts."""


def read_rows(path: Path) -> Iterator[Row]:
    """Every record of a file, in order.

    Raises SourceError for a file that is none of these, is damaged, or has a line that is no record; UsageError without
    pyarrow for a .parquet file.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    packed = path.name.lower().endswith(".gz")
    if suffix not in _FORMATS or (packed and suffix == ".parquet"):
        hint = f"known: {', '.join(_FORMATS)}; texts also with .gz"
        raise SourceError(f"{path} is no file of records", hint=hint)
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="give the file with what the teacher said")
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[suffix]
    try:
        yield from read(path)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="copy or make it again") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, (_, line) in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        values = json_object(line)
        if values is None:
            raise SourceError(f"{path}, line {number} is no JSON object", hint="write one object a line")
        yield Row(f"{path}, line {number}", values)


def _read_csv(path: Path) -> Iterator[Row]:
    with open_csv(path) as rows:
        columns = list(rows.fieldnames or ())
        if twice := [name for at, name in enumerate(columns) if name in columns[:at]]:
            raise SourceError(f"{path} has two columns {twice[0]!r}", hint="give each column a name of its own")
        number = rows.line_num + 1
        for row in rows:
            if None in row or None in row.values():  # what the csv module makes of fields too many or too few
                message = f"{path}, line {number} has not as many fields as the first line has columns"
                raise SourceError(message, hint="is it complete, and are names with commas in quotes?")
            yield Row(f"{path}, line {number}", row)
            number = rows.line_num + 1


def _read_parquet(path: Path) -> Iterator[Row]:
    table = ParquetTable([path])
    names = table.schema.names
    import pyarrow as pa

    if len(set(names)) < len(names):
        raise UsageError(f"{path} has two columns of one name", hint="give each column a name of its own")
    for start in range(0, len(table), _BLOCK):
        stop = min(len(table), start + _BLOCK)
        try:
            columns = [table.read(name, start, stop).to_pylist() for name in names]
        except (pa.ArrowException, ValueError, OverflowError) as error:
            hint = "copy or make it again"
            raise SourceError(f"{table.place(start)} and what follows cannot be read: {error}", hint=hint) from error
        for row, values in enumerate(zip(*columns, strict=True), start):
            yield Row(f"{path}, row {row + 1}", dict(zip(names, values, strict=True)))
