"""One record after another from .jsonl, .csv and .txt files, plain or gzipped."""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import SourceError
from featurecache.types import Json

__all__ = [
    "TEXT_FORMATS",
    "Columns",
    "Fields",
    "Record",
    "id_value",
    "json_object",
    "label_value",
    "open_csv",
    "parse_line",
    "read_lines",
    "read_records",
    "text_format",
]

TEXT_FORMATS = (".jsonl", ".csv", ".txt")
MAX_UNPACKED_BYTES = 8 * 2**30
"""A gzip file that unpacks to more is refused: its texts are held in memory."""
MAX_LINE_BYTES = 64 * 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column, or JSON field, was asked for; None is the usual one, which need not be there."""

    text: str | None = None
    label: str | None = None
    id: str | None = None
    image: str | None = None
    """Only tables have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which column, or JSON field, of a text file holds what."""

    text: str
    label: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record as its file has it."""

    line: int
    """The line it starts on, counted from 1."""
    text: bytes | None
    """What should be UTF-8, byte for byte; None where the record has no text."""
    label: str | int | None = None
    id: str | None = None
    offset: int = 0
    """Bytes from the start of the unpacked file to the line; 0 for csv."""
    size: int = 0
    """Bytes of the line, its end included; 0 for csv."""


def text_format(path: Path) -> str:
    """ ".jsonl", ".csv" or ".txt", with or without .gz behind it. Raises SourceError for other names."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in TEXT_FORMATS:
        raise SourceError(f"{path} is no text file", hint=f"known: {' '.join(TEXT_FORMATS)}, each also with .gz")
    return suffix


def read_records(path: Path, columns: Fields) -> Iterator[Record]:
    """All records of a file. Raises SourceError where the file as a whole is unusable or has no text column."""
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_txt}[text_format(path)]
    try:
        yield from read(path, columns)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="copy or build it again") from error


def parse_line(line: bytes, suffix: str, columns: Fields) -> bytes | None:
    """The text of one line of a .jsonl or .txt file, or None where it has none."""
    if suffix == ".txt":
        return line.removesuffix(b"\n").removesuffix(b"\r")
    return _text_bytes((json_object(line) or {}).get(columns.text))


def _read_txt(path: Path, columns: Fields) -> Iterator[Record]:
    for number, (offset, line) in enumerate(read_lines(path), 1):
        yield Record(line=number, text=parse_line(line, ".txt", columns), offset=offset, size=len(line))


def _read_jsonl(path: Path, columns: Fields) -> Iterator[Record]:
    seen = False
    for number, (offset, line) in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        fields = json_object(line)
        if fields and not seen:
            _check_columns(path, fields, columns)
            seen = True
        yield _record(path, number, fields or {}, columns, offset=offset, size=len(line))
    if not seen:
        raise SourceError(f"{path} has no line with a JSON object", hint="write one object a line")


def _read_csv(path: Path, columns: Fields) -> Iterator[Record]:
    with open_csv(path) as rows:
        _check_columns(path, rows.fieldnames or (), columns)
        number = rows.line_num + 1
        for row in rows:
            yield _record(path, number, row, columns)
            number = rows.line_num + 1


@contextmanager
def open_csv(path: Path) -> "Iterator[csv.DictReader[str]]":
    """The records of a .csv file as mappings from column to text, bytes that are no UTF-8 escaped."""
    previous_limit = csv.field_size_limit(MAX_LINE_BYTES)  # the default refuses texts over 128 KiB
    try:
        yield csv.DictReader(line.decode(errors="surrogateescape") for _, line in read_lines(path))
    finally:
        csv.field_size_limit(previous_limit)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its end) of the unpacked file, without a byte-order mark. Raises SourceError, OSError."""
    packed = path.name.lower().endswith(".gz")
    with gzip.open(path) if packed else path.open("rb") as stream:
        offset = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            end = offset + len(line)
            if len(line) > MAX_LINE_BYTES:
                raise SourceError(f"{path} has a line of more than {MAX_LINE_BYTES:,} bytes", hint="is it a text file?")
            if packed and end > MAX_UNPACKED_BYTES:
                raise SourceError(
                    f"{path} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes", hint="unpack it yourself"
                )
            text = line.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else line
            yield end - len(text), text
            offset = end


def _check_columns(path: Path, found: Iterable[str], columns: Fields) -> None:
    names = list(found)
    if columns.text not in names:
        raise SourceError(
            f"{path} has no column {columns.text!r}; its columns are: {', '.join(map(repr, names))}",
            hint="name the one that holds the text with --text-column",
        )


def _record(
    path: Path, line: int, fields: Mapping[str, Json], columns: Fields, *, offset: int = 0, size: int = 0
) -> Record:
    try:
        label = label_value(fields.get(columns.label))
    except ValueError as error:
        hint = "a label is a class name or an index; name its column with --label-column"
        raise SourceError(f"{path}, line {line}: {error}", hint=hint) from None
    text, identity = _text_bytes(fields.get(columns.text)), id_value(fields.get(columns.id))
    return Record(line=line, text=text, label=label, id=identity, offset=offset, size=size)


def json_object(line: bytes) -> dict[str, Json] | None:
    """The JSON object that a line is, or None where it is something else."""
    try:
        value = json.loads(line.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text_bytes(text: Json) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # JSON can spell a lone surrogate: these bytes are not UTF-8 either
        return text.encode(errors="surrogatepass")


def id_value(value: Json) -> str | None:
    """A key from an id: texts and whole numbers are, others give way to a hash of the sample."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        return str(value).encode().decode() or None
    except UnicodeEncodeError:  # a key must be valid text: the hash of the sample's text takes its place
        return None


def label_value(value: Json) -> str | int | None:
    """A class name or index, or None for what stands for no label. Raises ValueError for anything else."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError is a ValueError
        return value
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise ValueError(f"{value!r} is no label")
