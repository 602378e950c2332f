"""Samples in webdataset tars on the web, read as if they were local."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from featurecache.sources.downloads import Downloads, data_cache
from featurecache.sources.fetch import bare
from featurecache.sources.tar_listing import ABSENT, collect_rows
from featurecache.types import Modality, Reason, Sample

__all__ = ["RemoteTars", "are_listed", "file_name"]


class RemoteTars:
    """Tars at http and https addresses: keys, order and fingerprint are those of `TarShards` over the same files.

    Each tar is fetched whole into `folder` (`data_cache()` by default) when it is first listed or read, one at a time,
    and may be removed again for want of room; its listing stays. Raises SourceError as TarShards does, where a tar
    cannot be fetched, and, also while samples are read, where one has changed; DiskFullError.
    """

    modality: Modality
    keys: Sequence[str]

    def __init__(
        self, urls: str | Sequence[str], *, class_names: Sequence[str] | None = None, folder: Path | None = None
    ) -> None:
        self._tars = _downloads([urls] if isinstance(urls, str) else urls, folder)
        ordered = self._tars.urls
        self._rows = collect_rows(
            [file_name(url) for url in ordered],
            [bare(url) for url in ordered],
            map(self._tars.listing, range(len(ordered))),
            class_names=class_names,
        )
        self.modality, self.class_names = self._rows.modality, self._rows.class_names
        self.keys, self.labels = self._rows.keys, self._rows.labels

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Read one member, fetching its tar where need be. Raises SourceError, DiskFullError if that fails."""
        row = range(len(self.keys))[index]
        tar, offset, size = self._rows.find(row)
        encoded, problem = b"", Reason.UNREADABLE
        if offset != ABSENT:
            encoded, problem = self._tars.read(tar, offset, size), Reason.VALID
        label = int(self.labels[row])
        return Sample(self.keys[row], encoded, label if label >= 0 else None, problem)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order: one tar after another."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, member size)."""
        return self._rows.fingerprint()


def are_listed(urls: Sequence[str]) -> bool:
    """Whether a source of these tars can be opened without fetching any."""
    return _downloads(urls, None).is_listed()


def file_name(url: str) -> str:
    """The last part of the path of a URL: "x-000000.tar"."""
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _downloads(urls: Sequence[str], folder: Path | None) -> Downloads:
    return Downloads(sorted(urls, key=lambda url: (file_name(url), url)), folder or data_cache())
