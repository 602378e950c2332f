"""Adding a part to a cache, shard by shard; nothing that was committed is ever changed."""

import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptCacheError, IdentityError, UsageError, differences
from featurecache.fingerprint import canonical_json
from featurecache.store.commit import CommitRecord, find_parts, is_complete, read_part, seal, write_record
from featurecache.store.layout import FORMAT, GROUP, PartSpec, Shard, array_metadata
from featurecache.store.objects import LocalObjects
from featurecache.store.shard_file import ShardFile
from featurecache.store.validate import read_json
from featurecache.types import Json, Reason

__all__ = ["CacheWriter", "ShardWriter", "create_cache", "matching_part"]


def create_cache(path: Path | str, *, source: Json) -> LocalObjects:
    """Make an empty cache, or open the one that stands there. `source` is a hint where the data came from.

    Raises UsageError if the directory holds something else.
    """
    objects = LocalObjects(path)
    if not objects.exists("cache.json"):
        others = [name for name in objects.list() if name != "_tmp"]
        if others:
            hint = "choose another --out, or an empty directory"
            raise UsageError(f"{path} is not a cache and not empty (it has {others[0]})", hint=hint)
        objects.put_new("zarr.json", canonical_json(GROUP))
        value = {
            "format": "featurecache",
            "version": FORMAT,
            "uuid": str(uuid.uuid4()),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "source": source,
        }
        objects.put_new("cache.json", canonical_json(value))
    check_version(objects)
    return objects


def check_version(objects: LocalObjects) -> Json:
    """The content of cache.json. Raises CorruptCacheError if it is not a cache of this format."""
    value = read_json(objects, "cache.json")
    if not isinstance(value, dict) or value.get("format") != "featurecache":
        raise CorruptCacheError(f"{objects.root} is not a cache: cache.json is something else")
    if value.get("version") != FORMAT:
        hint = "a newer featurecache may read it"
        raise CorruptCacheError(f"{objects.root} has format {value.get('version')!r}, this is {FORMAT}", hint=hint)
    return value


def matching_part(objects: LocalObjects, split: str, kind: str, identity: Json) -> PartSpec | None:
    """The part of this kind with this identity, or None if the split has no part of the kind.

    Raises IdentityError, field by field, if it has one that was made from something else.
    """
    parts = [part for part in find_parts(objects, split) if part.kind == kind]
    for part in parts:
        if part.identity == identity:
            return part
    if not parts:
        return None
    raise IdentityError(
        f"{objects.root} already holds {parts[0].prefix}, made from something else:",
        fields=differences(parts[0].identity, identity),
        hint="give the options it was made with, or choose another --out",
    )


class CacheWriter:
    """Writes the shards of one part. Running it again on the same part writes only what is missing."""

    def __init__(self, objects: LocalObjects, part: PartSpec, *, assets: Mapping[str, bytes] | None = None) -> None:
        """Create the part, or take up the one that stands there. Raises IdentityError if that is another one."""
        self.objects = objects
        self.part = part
        key = f"{part.prefix}/part.json"
        if not objects.exists(key):
            for name, data in (assets or {}).items():
                objects.put_new(f"{part.prefix}/assets/{name}", data)
            for prefix in (part.split, part.prefix):
                objects.put_new(f"{prefix}/zarr.json", canonical_json(GROUP))
            for array in part.arrays:
                objects.put_new(f"{part.prefix}/{array.name}/zarr.json", canonical_json(array_metadata(part, array)))
            objects.put_new(key, canonical_json(part.to_json()))
        standing = read_part(objects, part.prefix)
        if standing.recipe_id != part.recipe_id:
            fields = differences(standing.identity, part.identity)
            raise IdentityError(f"{part.prefix} was made from something else:", fields=fields)

    def pending(self) -> Iterator[Shard]:
        """Shards that are not committed, asked anew for each, so that another run's work is not done twice."""
        for shard in self.part.shards():
            if not self.objects.exists(CommitRecord.key(self.part, shard)):
                yield shard

    def open(self, shard: Shard) -> "ShardWriter":
        """Begin a shard."""
        return ShardWriter(self.objects, self.part, shard)

    def write(self, shard: Shard, rows: Mapping[str, np.ndarray]) -> None:
        """Write and commit a whole shard at once: one array of rows for each array of the part."""
        writer = self.open(shard)
        try:
            writer.append(rows)
            writer.commit()
        except BaseException:
            writer.discard()
            raise

    def is_complete(self) -> bool:
        """Whether every shard is committed."""
        return is_complete(self.objects, self.part)

    def seal(self) -> str:
        """Seal the cache as it now is; returns the digest."""
        return seal(self.objects).digest


class ShardWriter:
    """One shard in the making: batches are appended to temporary files, so memory does not grow with the shard."""

    def __init__(self, objects: LocalObjects, part: PartSpec, shard: Shard) -> None:
        self.shard = shard
        self._objects = objects
        self._part = part
        self._files = {array.name: ShardFile(objects, part, array, shard) for array in part.arrays}
        self._rows = 0
        self._reasons = np.zeros(256, np.int64)

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add the next rows, (rows, *shape) for each array of the part; a ragged array gets its elements, flat."""
        if rows.keys() != self._files.keys():
            raise UsageError(f"a shard of {self._part.prefix} needs {sorted(self._files)}, got {sorted(rows)}")
        counts = {len(rows[array.name]) for array in self._part.arrays if not array.longest}
        if len(counts) != 1:
            raise UsageError(f"arrays of one batch have different numbers of rows: {sorted(counts)}")
        for name, file in self._files.items():
            file.append(rows[name])
        self._rows += counts.pop()
        if "reason" in rows:
            self._reasons += np.bincount(rows["reason"], minlength=256)

    def commit(self) -> CommitRecord:
        """Make every array durable, then say so in a commit record."""
        if self._rows != self.shard.rows:
            raise UsageError(f"shard {self.shard.index} has {self.shard.rows} rows, {self._rows} were written")
        payloads = tuple(file.finish() for file in self._files.values())
        invalid = {reason.name: int(self._reasons[reason]) for reason in Reason if reason and self._reasons[reason]}
        record = CommitRecord(self.shard, payloads, invalid)
        write_record(self._objects, self._part, record)
        return record

    def discard(self) -> None:
        """Give up the shard: no temporary file of it stays."""
        for file in self._files.values():
            file.discard()
