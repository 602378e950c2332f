"""Samples in local webdataset tars: members that share a name up to its first dot belong together."""

import itertools
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.listing import check_keys, index_labels, numbers_as_indices
from featurecache.sources.open_files import OpenFiles
from featurecache.types import Modality, Reason, Sample

__all__ = ["TarShards"]

_KINDS = {"jpg": "image", "jpeg": "image", "png": "image", "webp": "image", "txt": "text", "cls": "label"}
_MAX_LABEL_BYTES = 1024
_ABSENT = -1
_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError)
"""What tarfile raises for damaged or hostile headers."""


class _Member(NamedTuple):
    key: str
    extension: str
    offset: int
    size: int


class TarShards:
    """Uncompressed tars, sorted by name; the headers are read once, the contents by random access.

    A key is the tar's name without ".tar", a slash, and webdataset's `__key__`. Images are jpg, jpeg, png and webp,
    texts are txt, labels are cls (an index, or a class name); other members are never read. The first sample that has
    an image or a text decides the modality; a sample without that member is told as unreadable. Raises SourceError for
    a tar that is truncated, damaged or compressed, for two members of one kind in a sample, and for duplicate keys.
    """

    modality: Modality
    keys: Sequence[str]

    def __init__(self, paths: str | Path | Sequence[str | Path], *, class_names: Sequence[str] | None = None) -> None:
        listed = [paths] if isinstance(paths, str | Path) else paths
        self._files = OpenFiles(sorted(map(Path, listed), key=lambda path: (path.name, str(path))))
        rows = [row for file in range(len(self._files.paths)) for row in self._rows(file)]
        self.modality = self._modality(members for _, _, members in rows)
        self.keys = [key for _, key, _ in rows]
        self._file = np.array([file for file, _, _ in rows], dtype=np.int32)
        content = [members.get(self.modality) for _, _, members in rows]
        self._offset = np.array([member.offset if member else _ABSENT for member in content], dtype=np.int64)
        self._size = np.array([member.size if member else 0 for member in content], dtype=np.int64)
        check_keys(
            self.keys, self._place, hint="members of a sample must stand next to each other, tar names must differ"
        )
        labels = [self._label(file, members.get("label")) for file, _, members in rows]
        self.labels, self.class_names = index_labels(numbers_as_indices(labels, class_names), class_names, self._place)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Read one member; one that is absent or cannot be read gives a sample with a problem."""
        key, label = self.keys[index], int(self.labels[index])
        encoded, problem = b"", Reason.UNREADABLE
        if self._offset[index] != _ABSENT:
            try:
                encoded = self._files.read(int(self._file[index]), int(self._offset[index]), int(self._size[index]))
                problem = Reason.VALID
            except OSError:
                pass  # the sample says so itself, and the run goes on
        return Sample(key, encoded, label if label >= 0 else None, problem)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, member size)."""
        return hash_rows(self.keys, self._size.tolist())

    def _rows(self, file: int) -> Iterator[tuple[int, str, dict[str, _Member]]]:
        path = self._files.paths[file]
        for key, group in itertools.groupby(_members(path), key=lambda member: member.key):
            members: dict[str, _Member] = {}
            for member in group:
                kind = _KINDS.get(member.extension.lower())
                if kind in members:
                    pair = f"{members[kind].extension} and {member.extension}"
                    raise SourceError(
                        f"sample {key!r} of {path} has two members for its {kind}: {pair}",
                        hint="a sample's key ends at the first dot of its name; give each sample a name of its own",
                    )
                if kind:
                    members[kind] = member
            yield file, f"{path.name.removesuffix('.tar')}/{key}", members

    def _label(self, file: int, member: _Member | None) -> str | None:
        if member is None:
            return None
        place = f"{self._files.paths[file]}, member {member.key}.{member.extension}"
        if member.size > _MAX_LABEL_BYTES:
            raise SourceError(f"{place} is too long for a label: {member.size:,} bytes")
        try:
            return self._files.read(file, member.offset, member.size).decode().strip() or None
        except UnicodeDecodeError:
            raise SourceError(f"{place} is not UTF-8", hint="a .cls holds a class index or a class name") from None

    def _place(self, index: int) -> str:
        return f"row {index} ({self._files.paths[self._file[index]]})"

    def _modality(self, rows: Iterable[Mapping[str, _Member]]) -> Modality:
        for members in rows:
            if "image" in members or "text" in members:
                return "image" if "image" in members else "text"
        names = ", ".join(str(path) for path in self._files.paths[:3])
        raise SourceError(
            f"no image or text in {names or 'no tar at all'}",
            hint=f"members that end in .{' .'.join(_KINDS)} are used, and the first dot of a name ends its key",
        )


def _members(path: Path) -> Iterator[_Member]:
    """The regular members that webdataset would name, in order. Raises SourceError unless the tar is whole."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0:
                    raise tarfile.ReadError("a member of negative size")
                tar.members.clear()  # type: ignore[attr-defined]  # a shard may have millions, and tarfile keeps each
                name = _split(member.name)
                if name and member.isreg() and not member.issparse():
                    yield _Member(*name, member.offset_data, member.size)
            with path.open("rb") as stream:  # tarfile takes a cut at a member's edge, or a bad header, for the end
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it does not end as a tar does")
    except _DAMAGE as error:
        raise SourceError(
            f"{path} is no whole tar: {error}", hint="copy or build it again; a compressed tar must be unpacked to .tar"
        ) from error


def _split(name: str) -> tuple[str, str] | None:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}{slash}{stem}", extension) if stem and extension else None
