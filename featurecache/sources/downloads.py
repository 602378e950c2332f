"""A folder of tars fetched from the web: each is here while there is room, and what is in it is known for good."""

import fcntl
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from featurecache.errors import SourceError, UsageError
from featurecache.sources.fetch import bare, fetch
from featurecache.sources.tar_listing import TarSample, list_tar
from featurecache.types import Json

__all__ = ["Downloads", "data_cache", "replace_text"]

_MAX_HELD = 2
"""Tars that a process keeps from being removed, because it reads them."""


def data_cache() -> Path:
    """$FC_DATA_CACHE, else featurecache/data in $XDG_CACHE_HOME or ~/.cache; made where it is not there."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("FC_DATA_CACHE") or f"{home}/featurecache/data").expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set FC_DATA_CACHE to a folder that can be written"
        raise UsageError(f"cannot make the folder for downloads, {folder}: {error.strerror}", hint=hint) from error
    return folder


class Downloads:
    """Byte ranges of remote tars, fetched one by one when they are first needed.

    It pickles as its URLs and digests of their listings: offsets are never used on a tar that was listed differently.
    Several processes may share the folder: who needs a tar waits for whoever is fetching it. The least recently used
    ones are removed when the folder gets too large, but none that a process reads.
    """

    def __init__(self, urls: Sequence[str], folder: Path, digests: Mapping[str, str] | None = None) -> None:
        self.urls, self.folder = tuple(urls), folder
        self._digests = dict(digests or {})
        self._hold = functools.lru_cache(maxsize=_MAX_HELD)(functools.partial(_checked, folder, self._digests))

    def __reduce__(self) -> tuple[type["Downloads"], tuple[tuple[str, ...], Path, dict[str, str]]]:
        return type(self), (self.urls, self.folder, self._digests)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a tar.

        Raises SourceError where it cannot be fetched or read, or has changed since it was listed, and DiskFullError.
        """
        url = self.urls[number]
        with _told(self.folder):
            content = os.pread(self._hold(url).descriptor, size, offset)
        if len(content) != size:
            hint = f"remove {_tar(_stem(self.folder, url))}: it is fetched again"
            raise SourceError(f"the copy of {bare(url)} is shorter than when it was listed", hint=hint)
        return content

    def listing(self, number: int) -> list[TarSample]:
        """What is in a tar; only one that was never here is fetched for it. Raises SourceError, DiskFullError."""
        url = self.urls[number]
        stem = _stem(self.folder, url)
        with _told(self.folder):
            index = _read_index(stem)
            if index is None:
                held = self._hold(url)
                index = _known(stem, url)
                del held
        self._digests[url] = index.digest
        return index.samples

    def is_listed(self) -> bool:
        """Whether nothing need be fetched to list all of them."""
        return all(_read_index(_stem(self.folder, url)) is not None for url in self.urls)


class _Index(NamedTuple):
    samples: list[TarSample]
    digest: str
    """sha256 of the file that has them."""


class _Held:
    """An open tar with a shared lock on it; both end when the last user lets go of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _checked(folder: Path, digests: Mapping[str, str], url: str) -> _Held:
    """An open tar. Raises SourceError if it is not the one whose listing has that digest."""
    held, stem = _hold(folder, url), _stem(folder, url)
    is_same = url not in digests or _digest(stem) == digests[url]
    if not is_same and _known(stem, url).digest != digests[url]:  # or its listing was lost
        raise SourceError(
            f"{bare(url)} has changed since its samples were listed",
            hint="run again: a cache that was begun with the former samples will say so",
        )
    return held


def _hold(folder: Path, url: str) -> _Held:
    stem = _stem(folder, url)
    while True:
        try:
            held = _Held(os.open(_tar(stem), os.O_RDONLY))
        except FileNotFoundError:
            with _fetching(stem):
                if not _tar(stem).exists():  # or another process has fetched it while this one waited
                    _download(folder, stem, url)
            continue
        fcntl.flock(held.descriptor, fcntl.LOCK_SH)
        if os.fstat(held.descriptor).st_nlink:  # or it was removed before it was locked
            with suppress(OSError):
                os.utime(_tar(stem))  # the order of removal
            return held


def _download(folder: Path, stem: Path, url: str) -> None:
    part = stem.with_suffix(".part")
    fetch(url, part, make_room=functools.partial(_make_room, folder))
    try:
        found = list(list_tar(part, bare(url)))
    except SourceError:
        part.unlink()  # a damaged one is fetched again
        raise
    _write_index(stem, url, found)
    os.replace(part, _tar(stem))  # after the index: whoever opens this tar finds its own listing


def _known(stem: Path, url: str) -> _Index:
    """The listing of a tar that is here, made again where it was lost."""
    return _read_index(stem) or _write_index(stem, url, list(list_tar(_tar(stem), bare(url))))


def _digest(stem: Path) -> str:
    try:
        return hashlib.sha256(stem.with_suffix(".json").read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _make_room(folder: Path, needed: int) -> None:
    """Remove what nobody reads or fetches, the least recently used first, until `needed` bytes fit the limit."""
    found = []
    for path in (*folder.glob("*.tar"), *folder.glob("*.part")):
        with suppress(OSError):  # another process removes some too
            facts = path.stat()
            found.append((facts.st_mtime, facts.st_size, path))
    used = sum(size for _, size, _ in found)
    limit = _limit(folder, used)
    for _, size, path in sorted(found):
        if used + needed <= limit:
            return
        with suppress(OSError), _lock_of(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while anybody reads or fetches it
            path.unlink()  # the notes of a part mean nothing without it
            used -= size


def _lock_of(path: Path) -> BinaryIO:
    """What is locked while a tar is read, or a part is fetched."""
    # over NFS, only what is open for writing can be locked for one alone
    return path.open("r+b") if path.suffix == ".tar" else path.with_suffix(".lock").open("ab")


def _limit(folder: Path, used: int) -> float:
    given = os.environ.get("FC_DATA_CACHE_GB")
    if not given:
        return (shutil.disk_usage(folder).free + used) / 2
    with suppress(ValueError):
        if 0 <= float(given) < math.inf:
            return float(given) * 1e9
    raise SourceError(f"FC_DATA_CACHE_GB is {given!r}, which is no number of gigabytes", hint="give one: 200")


def _stem(folder: Path, url: str) -> Path:
    return folder / hashlib.sha256(url.encode()).hexdigest()[:32]


def _tar(stem: Path) -> Path:
    return stem.with_suffix(".tar")


@contextmanager
def _fetching(stem: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process that has it."""
    with stem.with_suffix(".lock").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "set FC_DATA_CACHE to a folder that can be read, written and locked"
        raise SourceError(f"downloads in {folder} cannot be used: {error}", hint=hint) from error


def replace_text(path: Path, text: str) -> None:
    """Write a file beside, then rename it: nobody reads half of it. Raises OSError."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _write_index(stem: Path, url: str, samples: list[TarSample]) -> _Index:
    text = json.dumps({"format": 1, "url": bare(url), "samples": samples})
    replace_text(stem.with_suffix(".json"), text)
    return _Index(samples, hashlib.sha256(text.encode()).hexdigest())


def _read_index(stem: Path) -> _Index | None:
    """The samples of a tar as they were listed; None where it never was, or the file is not what is written here."""
    try:
        content = stem.with_suffix(".json").read_bytes()
        index = json.loads(content)
        if index["format"] != 1:
            return None
        return _Index([_sample(*row) for row in index["samples"]], hashlib.sha256(content).hexdigest())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sample(key: Json, image: Json, text: Json, label: Json) -> TarSample:
    if not isinstance(key, str) or not isinstance(label, str | None):
        raise TypeError("a key or label that is no text")
    return TarSample(key, _span(image), _span(text), label)


def _span(span: Json) -> tuple[int, int] | None:
    if span is None:
        return None
    offset, size = span
    if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
        raise ValueError("a span that is no range of bytes")
    return offset, size
