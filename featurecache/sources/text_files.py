"""Texts of .jsonl, .csv and .txt files, plain or gzipped: one sample a record."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.listing import check_keys, index_labels, numbers_as_indices
from featurecache.sources.open_files import OpenFiles
from featurecache.sources.text_records import Columns, Record, parse_line, read_records, text_format
from featurecache.types import Modality, Reason, Sample

__all__ = ["TextFiles"]


class TextFiles:
    """Records in line order, files sorted by name; plain .jsonl and .txt are read by random access, the rest is kept.

    A key is the record's id, else a hash of its text, else (no text to hash) its line. Labels are class names or
    indices; a .txt has none. A line that is no JSON or has no text is told as unreadable; blank lines of .txt are
    empty texts. Raises SourceError for a missing text column, for duplicate keys, for a label outside `class_names`,
    and for a file that cannot be unpacked.
    """

    modality: Modality = "text"
    keys: Sequence[str]

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        text_column: str = "text",
        label_column: str = "label",
        id_column: str = "id",
        class_names: Sequence[str] | None = None,
    ) -> None:
        listed = [paths] if isinstance(paths, str | Path) else paths
        self._columns = Columns(text=text_column, label=label_column, id=id_column)
        self._files = OpenFiles(sorted(map(Path, listed), key=lambda path: (path.name, str(path))))
        self._formats = [text_format(path) for path in self._files.paths]
        self._kept: dict[int, bytes] = {}
        keys: list[str] = []
        labels: list[str | int | None] = []
        rows: list[tuple[int, int, int, int, int]] = []
        for file, path in enumerate(self._files.paths):
            keep = self._formats[file] == ".csv" or path.name.lower().endswith(".gz")
            for record in read_records(path, self._columns):
                if keep and record.text is not None:
                    self._kept[len(rows)] = record.text
                keys.append(self._key(file, record))
                labels.append(record.label)
                text_size = -1 if record.text is None else len(record.text)
                rows.append((file, record.line, record.offset, record.size, text_size))
        if not rows:
            raise SourceError(f"no texts in {', '.join(map(str, self._files.paths))}", hint="the files are empty")
        self.keys = keys
        self._file, self._line, self._offset, self._size, self._text_size = np.array(rows, dtype=np.int64).T.copy()
        check_keys(self.keys, self._place, hint=self._duplicate_hint())
        if set(self._formats) == {".csv"}:
            labels = list(numbers_as_indices(labels, class_names))
        self.labels, self.class_names = index_labels(labels, class_names, self._place)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """One text as UTF-8 bytes, or as the bytes that stand in place of UTF-8."""
        row = range(len(self.keys))[index]
        label = int(self.labels[row])
        text = None if self._text_size[row] < 0 else self._text(row)
        problem = Reason.UNREADABLE if text is None else Reason.VALID
        return Sample(self.keys[row], text or b"", label if label >= 0 else None, problem)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, bytes of text)."""
        return hash_rows(self.keys, np.maximum(self._text_size, 0).tolist())

    def _text(self, row: int) -> bytes | None:
        if row in self._kept:
            return self._kept[row]
        file = int(self._file[row])
        try:
            line = self._files.read(file, int(self._offset[row]), int(self._size[row]))
        except OSError:
            return None
        return parse_line(line, self._formats[file], self._columns)

    def _key(self, file: int, record: Record) -> str:
        if record.id is not None:
            return record.id
        if record.text and record.text.strip():
            return hashlib.sha256(record.text).hexdigest()[:32]
        several = len(self._files.paths) > 1
        return f"{_stem(self._files.paths[file])}/line-{record.line}" if several else f"line-{record.line}"

    def _place(self, index: int) -> str:
        return f"line {self._line[index]} of {self._files.paths[self._file[index]]}"

    def _duplicate_hint(self) -> str:
        return (
            f"remove one of them; without a column {self._columns.id!r} (see --id-column) the text itself is the key, "
            "so each text may stand once"
        )


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem
