"""The first samples of a source, as a source."""

from collections.abc import Iterator, Sequence

import numpy as np

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.base import Source
from featurecache.types import Modality, Sample

__all__ = ["Limited"]


class Limited:
    """The first `count` samples of a source, or all where it has fewer; class names stay those of the whole."""

    modality: Modality
    keys: Sequence[str]

    def __init__(self, source: Source, count: int) -> None:
        """Raises SourceError for a count below 1."""
        if count < 1:
            raise SourceError(f"a limit of {count} leaves no sample", hint="give --limit at least 1")
        self._source = source
        self.modality = source.modality
        self.class_names = source.class_names
        self.keys = source.keys[:count]
        self.labels: np.ndarray = source.labels[:count]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        return self._source[range(len(self.keys))[index]]

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return self._source.iter(start, min(stop, len(self)))

    def fingerprint(self) -> str:
        """Hash of the (key, byte size) of the samples that are kept, which are read for it."""
        if len(self) == len(self._source):
            return self._source.fingerprint()
        return hash_rows(self.keys, (len(sample.encoded) for sample in self.iter(0, len(self))))
