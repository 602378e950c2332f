"""A folder of tars fetched from the web: each is here while there is room, and what is in it is known for good."""

import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from featurecache.errors import SourceError, UsageError
from featurecache.sources.fetch import bare, fetch
from featurecache.sources.tar_listing import TarSample, list_tar
from featurecache.types import Json

__all__ = ["Downloads", "data_cache"]

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
    """Byte ranges of remote tars, fetched one by one when they are first needed; it pickles as its URLs.

    Several processes may share the folder: who needs a tar waits for whoever is fetching it. The least recently used
    ones are removed when the folder gets too large, but none that a process reads.
    """

    def __init__(self, urls: Sequence[str], folder: Path) -> None:
        self.urls, self.folder = tuple(urls), folder
        self._hold = functools.lru_cache(maxsize=_MAX_HELD)(functools.partial(_hold, folder))

    def __reduce__(self) -> tuple[type["Downloads"], tuple[tuple[str, ...], Path]]:
        return type(self), (self.urls, self.folder)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a tar. Raises SourceError where it cannot be fetched, OSError if cut off."""
        content = os.pread(self._hold(self.urls[number]).descriptor, size, offset)
        if len(content) != size:
            raise OSError(f"{bare(self.urls[number])} is shorter than when it was listed")
        return content

    def listing(self, number: int) -> list[TarSample]:
        """What is in a tar; only one that was never here is fetched for it. Raises SourceError."""
        url = self.urls[number]
        stem = _stem(self.folder, url)
        known = _read_index(stem)
        if known is None:
            held = self._hold(url)
            known = _read_index(stem) or _list(stem, url)
            del held
        return known

    def is_listed(self) -> bool:
        """Whether nothing need be fetched to list all of them."""
        return all(_read_index(_stem(self.folder, url)) is not None for url in self.urls)


class _Held:
    """An open tar with a shared lock on it; both end when the last user lets go of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


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
    listed = _read_index(stem)
    try:
        found = list(list_tar(part, bare(url)))
    except SourceError:
        part.unlink()  # a damaged one is fetched again
        raise
    _write_index(stem, url, found)
    os.replace(part, _tar(stem))
    if listed not in (None, found):
        raise SourceError(
            f"{bare(url)} has changed since its samples were listed",
            hint="run again: a cache that was begun with the former samples will say so",
        )


def _list(stem: Path, url: str) -> list[TarSample]:
    found = list(list_tar(_tar(stem), bare(url)))
    _write_index(stem, url, found)
    return found


def _make_room(folder: Path, needed: int) -> None:
    """Remove tars that nobody reads, the least recently used first, until `needed` bytes fit the limit."""
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
        if path.suffix == ".tar":
            with suppress(OSError), path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while anybody reads it
                path.unlink()
                used -= size


def _limit(folder: Path, used: int) -> float:
    given = os.environ.get("FC_DATA_CACHE_GB")
    if not given:
        return (shutil.disk_usage(folder).free + used) / 2
    try:
        return float(given) * 1e9
    except ValueError:
        raise UsageError(f"FC_DATA_CACHE_GB is {given!r}, which is no number", hint="give gigabytes: 200") from None


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


def _write_index(stem: Path, url: str, samples: list[TarSample]) -> None:
    unfinished = stem.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps({"format": 1, "url": bare(url), "samples": samples}), encoding="utf-8")
    os.replace(unfinished, stem.with_suffix(".json"))


def _read_index(stem: Path) -> list[TarSample] | None:
    """The samples of a tar as they were listed; None where it never was, or the file is not what is written here."""
    try:
        index = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        return [_sample(*row) for row in index["samples"]] if index["format"] == 1 else None
    except (OSError, ValueError, KeyError, TypeError):
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
