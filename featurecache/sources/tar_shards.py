"""Samples in local webdataset tars: members that share a name up to its first dot belong together."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from featurecache.sources.open_files import OpenFiles
from featurecache.sources.tar_listing import ABSENT, collect_rows, list_tar
from featurecache.types import Modality, Reason, Sample

__all__ = ["TarShards"]


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
        opened = self._files.paths
        listings = (list_tar(path, str(path)) for path in opened)
        self._rows = collect_rows(
            [path.name for path in opened], list(map(str, opened)), listings, class_names=class_names
        )
        self.modality, self.class_names = self._rows.modality, self._rows.class_names
        self.keys, self.labels = self._rows.keys, self._rows.labels

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Read one member; one that is absent or cannot be read gives a sample with a problem."""
        row = range(len(self.keys))[index]
        file, offset, size = self._rows.find(row)
        encoded, problem = b"", Reason.UNREADABLE
        if offset != ABSENT:
            with suppress(OSError):  # the sample says so itself, and the run goes on
                encoded, problem = self._files.read(file, offset, size), Reason.VALID
        label = int(self.labels[row])
        return Sample(self.keys[row], encoded, label if label >= 0 else None, problem)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, member size)."""
        return self._rows.fingerprint()
