"""Texts of .jsonl, .csv and .txt files, plain or gzipped: one sample a record."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.listing import LabelColumn, check_keys
from featurecache.sources.open_files import OpenFiles
from featurecache.sources.packed import Keys, PackedBytes, Packer, narrow
from featurecache.sources.text_records import Fields, Record, parse_line, read_records, text_format
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

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        text_column: str | None = None,
        label_column: str | None = None,
        id_column: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        listed = [paths] if isinstance(paths, str | Path) else paths
        self._columns = Fields(text=text_column or "text", label=label_column or "label", id=id_column or "id")
        self._files = OpenFiles(sorted(map(Path, listed), key=lambda path: (path.name, str(path))))
        self._formats = [text_format(path) for path in self._files.paths]
        self._kept: dict[int, PackedBytes] = {}
        keys, labels = Packer(), LabelColumn()
        starts, lines, offsets, sizes, text_sizes = (array("q") for _ in range(5))
        for file, path in enumerate(self._files.paths):
            kept = Packer() if self._formats[file] == ".csv" or path.name.lower().endswith(".gz") else None
            starts.append(len(lines))
            for record in read_records(path, self._columns):
                keys.append(self._key(file, record).encode())
                labels.append(record.label)
                lines.append(record.line)
                offsets.append(record.offset)
                sizes.append(record.size)
                text_sizes.append(-1 if record.text is None else len(record.text))
                if kept is not None:
                    kept.append(record.text or b"")
            if kept is not None:
                self._kept[file] = kept.pack()
        if not lines:
            raise SourceError(f"no texts in {', '.join(map(str, self._files.paths))}", hint="the files are empty")
        self._starts = np.array(starts)
        packed = Keys(keys.pack())
        self.keys: Sequence[str] = packed
        self._offset, self._size, self._text_size = (
            narrow(np.frombuffer(column, np.int64)) for column in (offsets, sizes, text_sizes)
        )

        def place(row: int) -> str:
            return f"line {lines[row]} of {self._files.paths[self._file(row)]}"

        check_keys(packed, place, hint=self._duplicate_hint())
        untyped = set(self._formats) == {".csv"}
        self.labels, self.class_names = labels.indices(class_names, place, untyped=untyped)

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
        return hash_rows(self.keys, map(int, np.maximum(self._text_size, 0)))

    def _text(self, row: int) -> bytes | None:
        file = self._file(row)
        if file in self._kept:
            return self._kept[file][row - int(self._starts[file])]
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

    def _file(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _duplicate_hint(self) -> str:
        return (
            f"remove one of them; without a column {self._columns.id!r} (see --id-column) the text itself is the key, "
            "so each text may stand once"
        )


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem
