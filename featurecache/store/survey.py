"""What a cache holds, what its own JSON says it should hold, and where the two differ; payloads are not read here."""

import os
import re
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ParamSpec, TypeVar

from featurecache.errors import CorruptCacheError, FeatureCacheError, UsageError
from featurecache.fingerprint import canonical_json
from featurecache.store.commit import CommitRecord, read_record, record_shard
from featurecache.store.described import described_inputs, described_views
from featurecache.store.hashes import Hashes
from featurecache.store.layout import GROUP, MOST_AXES, PartSpec, Shard, shard_key
from featurecache.store.objects import LocalObjects
from featurecache.store.parts import check_asset, metadata, read_part
from featurecache.store.seals import Seal, part_keys, read_seal, seal_numbers
from featurecache.store.shard_file import Payload
from featurecache.store.writer import check_version
from featurecache.types import ArraySpec

__all__ = ["Finding", "Survey"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

_IGNORED = {"_tmp", "_claims", "README.md"}
_LEFT_ABOUT = re.compile(r"\.DS_Store|\._.*|\.nfs[0-9a-f]+|Thumbs\.db|desktop\.ini")
"""What file systems and desktops put into folders by themselves."""
_DEEPEST = 6 + MOST_AXES
"""Names in the longest key there is: SPLIT/PART/ARRAY/c/VIEW/SHARD/0/0..."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a cache."""

    key: str
    """The object, or where it should be."""
    problem: str

    def __str__(self) -> str:
        return self.problem if self.key in self.problem else f"{self.key} {self.problem}"


class Survey:
    """All of a cache but the bytes of its payloads. `findings` looks through it and fills in the rest."""

    def __init__(self, objects: LocalObjects) -> None:
        self.objects = objects
        self.files: dict[str, int] = {}
        """Every plain file and its size."""
        self.parts: dict[str, PartSpec] = {}
        self.payloads: dict[str, Payload] = {}
        """Every committed shard file."""
        self.arrays: dict[str, tuple[PartSpec, ArraySpec]] = {}
        """What each of them is a shard of."""
        self.promises: dict[str, Hashes] = {}
        """What the seals say of objects that can be read as they say."""
        self._committed: dict[str, set[tuple[int, int]]] = {}
        self._seals: list[tuple[Seal, dict[str, Hashes]]] = []
        self._bad: set[str] = set()

    def findings(self) -> Iterator[Finding]:
        """Everything that is wrong with names, JSON, links, seals, and with what is there or not."""
        for finding in self._all():
            self._bad.add(finding.key)
            yield finding
        for key in self._bad:  # told once is enough; a payload's own bytes are still to be looked at
            if key not in self.payloads:
                self.promises.pop(key, None)

    def _all(self) -> Iterator[Finding]:
        yield from self._walk(self.objects.root, "")
        yield from self._try("cache.json", check_version, self.objects)
        yield from self._try("zarr.json", self._compare, "zarr.json", canonical_json(GROUP))
        for key in sorted(self.files):
            if key.count("/") == 2 and key.endswith("/part.json"):
                prefix = key.removesuffix("/part.json")
                if part := (yield from self._try(key, read_part, self.objects, prefix)):
                    self.parts[prefix] = part
        for part in self.parts.values():
            yield from self._read_records(part)
            yield from self._check_part(part)
        yield from self._check_views()
        yield from self._read_seals()
        for seal, listed in self._seals:
            yield from self._check_seal(seal, listed)
        yield from self._check_covered()
        yield from self._strangers()

    def _walk(self, folder: Path, prefix: str) -> Iterator[Finding]:
        """Fill in the files. Nothing is followed or opened."""
        if prefix.count("/") >= _DEEPEST:
            yield Finding(prefix.removesuffix("/"), "is a folder deeper than any of a cache")
            return
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Finding(prefix.removesuffix("/"), f"cannot be listed: {os.strerror(error.errno or 0)}")
            return
        for entry in listed:
            key = prefix + entry.name.encode("utf-8", "backslashreplace").decode()
            if (key in _IGNORED or _LEFT_ABOUT.fullmatch(entry.name)) and not entry.is_symlink():
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(folder / entry.name, f"{key}/")
            elif stat.S_ISREG(status.st_mode):
                self.files[key] = status.st_size
            else:
                yield Finding(key, "is not a plain file")

    def _try(
        self, key: str, read: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Generator[Finding, None, Result | None]:
        """What reading gives; None and a finding if that fails as it does for a damaged object."""
        if key in self._bad:
            return None
        try:
            return read(*args, **kwargs)
        except FeatureCacheError as error:
            yield Finding(key, error.message)
            return None

    def _compare(self, key: str, expected: bytes) -> None:
        if self.objects.get(key) != expected:
            raise CorruptCacheError(f"{key} is not the metadata that belongs there")

    def _read_records(self, part: PartSpec) -> Iterator[Finding]:
        folder = f"{part.prefix}/_commits/"
        self._committed[part.prefix] = set()
        for key in sorted(key for key in self.files if key.startswith(folder)):
            shard = yield from self._try(key, record_shard, part, key.removeprefix(folder))
            record = shard and (yield from self._try(key, read_record, self.objects, part, shard))
            if not record:
                continue
            self._committed[part.prefix].add((record.shard.view, record.shard.index))
            for array, payload in zip(part.arrays, record.payloads, strict=True):
                self.payloads[payload.key], self.arrays[payload.key] = payload, (part, array)

    def _check_part(self, part: PartSpec) -> Iterator[Finding]:
        """Metadata, assets, and whether a reader could make sense of it."""
        for key, expected in metadata(part).items():
            yield from self._try(key, self._compare, key, expected)
        for name in part.assets:
            yield from self._try(f"{part.prefix}/assets/{name}", check_asset, self.objects, part, name)
        described = f"{part.prefix}/part.json"
        rows = self.parts.get(f"{part.split}/rows")
        if rows is None:
            yield Finding(described, f"is of a split whose part {part.split}/rows is not there")
        elif part.kind not in ("rows", "probe") and (part.rows, part.identity.get("data")) != (
            rows.rows,
            rows.identity,
        ):
            yield Finding(described, f"is over other rows than {rows.prefix}")
        elif part.kind == "inputs":
            yield from self._try(described, described_inputs, part, rows)

    def _check_views(self) -> Iterator[Finding]:
        """Whether the parts of views of each split follow each other, and are drawn by what is known here."""
        drawn = sorted((part for part in self.parts.values() if part.kind == "views"), key=_first_view)
        for split in sorted({part.split for part in drawn}):
            parts = [part for part in drawn if part.split == split]
            yield from self._try(f"{parts[0].prefix}/part.json", described_views, parts)

    def _read_seals(self) -> Iterator[Finding]:
        """Read the chain. What a seal lists stays as it is in every later one."""
        numbers = seal_numbers(self.objects)
        for place, number in enumerate(numbers):
            if number != place:
                yield Finding(f"seals/{place}.json", f"is missing, and seals/{number}.json is there")
                break
        for number in numbers:
            if found := (yield from self._try(f"seals/{number}.json", read_seal, self.objects, number)):
                self._seals.append(found)
        for (older, before), (newer, now) in pairwise(self._seals):
            key = f"seals/{newer.number}.json"
            if newer.number == older.number + 1 and newer.previous != older.digest:
                yield Finding(key, f"was made after another seals/{older.number}.json than this one")
            changed = next((name for name in before if now.get(name) != before[name]), None)
            if changed:
                yield Finding(key, f"says of {changed} something else than seals/{older.number}.json")
        first = self._seals[0][0] if self._seals else None
        if first and first.number == 0 and first.previous:
            yield Finding("seals/0.json", "is the first, but names one before it")
        for _, listed in self._seals:
            self.promises |= listed

    def _check_seal(self, seal: Seal, listed: dict[str, Hashes]) -> Iterator[Finding]:
        """Whether a seal lists just what its parts consist of, as their records have it."""
        key = f"seals/{seal.number}.json"
        expected: set[str] = set()
        for prefix in seal.parts:
            part = self.parts.get(prefix)
            if part is None or not self._is_complete(part):
                what = "is not there" if part is None else "has shards that are not committed"
                yield Finding(key, f"covers {prefix}, which {what}")
                return
            expected |= part_keys(part)
            expected |= {shard_key(part, array, shard) for array in part.arrays for shard in part.shards()}
        for name in sorted(expected ^ listed.keys()):
            yield Finding(key, f"{'does not list' if name in expected else 'lists'} {name}")
        for name in sorted(expected & listed.keys() & self.payloads.keys()):
            payload = self.payloads[name]
            if listed[name] != Hashes(payload.bytes, payload.crc32c, payload.sha256):
                yield Finding(key, f"says of {name} something else than its commit record")

    def _check_covered(self) -> Iterator[Finding]:
        """Where nothing is under way any more, the newest seal covers every part."""
        splits = {part.split for part in self.parts.values()}
        taught = {part.split for part in self.parts.values() if part.kind == "teacher"}
        covered = self._seals[-1][0].parts if self._seals else ()
        if taught == splits and all(map(self._is_complete, self.parts.values())):
            for prefix in sorted(self.parts.keys() - set(covered)):
                problem = "is of a complete part that no seal covers: run the command that made it again"
                yield Finding(f"{prefix}/part.json", problem)

    def _is_complete(self, part: PartSpec) -> bool:
        return len(self._committed[part.prefix]) == part.shard_count

    def _strangers(self) -> Iterator[Finding]:
        """Files that nothing accounts for; what an unfinished run leaves is accounted for."""
        known = {"cache.json", "zarr.json"} | {f"seals/{number}.json" for number in seal_numbers(self.objects)}
        known |= self.promises.keys() | self.payloads.keys()
        for part in self.parts.values():
            known |= {f"{part.prefix}/part.json", *metadata(part)}
            known |= {f"{part.prefix}/assets/{name}" for name in part.assets}
            known |= {CommitRecord.key(part, part.shard(*numbers)) for numbers in self._committed[part.prefix]}
        for key in sorted(self.files.keys() - known - self._bad):
            if not self._in_the_making(key):
                yield Finding(key, "is in the cache, but nothing lists it")

    def _in_the_making(self, key: str) -> bool:
        """Whether a file is of a shard, or of a part, whose record or part.json is not written yet, or is damaged."""
        segments = key.split("/")
        prefix = "/".join(segments[:2])
        part = self.parts.get(prefix)
        if f"{prefix}/part.json" in self._bad and part is None:
            return True
        if part is None:
            unfinished = not self._seals or not all(map(self._is_complete, self.parts.values()))
            return unfinished and (segments[-1] == "zarr.json" or segments[2:3] == ["assets"]) and len(segments) < 5
        array = next((array for array in part.arrays if array.name == segments[2]), None)
        shard = _shard_of(part, segments[4:])
        if array is None or shard is None or (shard.view, shard.index) in self._committed[prefix]:
            return False
        return key == shard_key(part, array, shard)


def _first_view(part: PartSpec) -> tuple[int, int]:
    return part.views or (0, 1)


def _shard_of(part: PartSpec, numbers: list[str]) -> Shard | None:
    """The shard that ARRAY/c/[VIEW/]INDEX/0... is a file of."""
    found = [int(number) if re.fullmatch("[0-9]{1,9}", number) else -1 for number in numbers] + [-1, -1]
    view, index = (part.views[0] + found[0], found[1]) if part.views else (0, found[0])
    try:
        return part.shard(view, index)
    except UsageError:
        return None
