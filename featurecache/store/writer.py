"""Adding a part to a cache, shard by shard; nothing that was committed is ever changed."""

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptCacheError, IdentityError, UsageError, differences
from featurecache.fingerprint import canonical_json, hash_json
from featurecache.store.commit import CommitRecord, is_complete, pending_groups, pending_shards, write_record
from featurecache.store.layout import FORMAT, GROUP, MAX_PART_BYTES, Asset, PartSpec, Shard
from featurecache.store.objects import MAX_ASSET_BYTES, LocalObjects
from featurecache.store.parts import find_parts, metadata, read_part
from featurecache.store.seals import seal
from featurecache.store.shard_file import Payload, ShardFile
from featurecache.store.validate import read_json, sign
from featurecache.types import Json, Reason

__all__ = ["CacheWriter", "ShardWriter", "create_cache", "find_part", "is_cache", "matching_part"]


def create_cache(path: Path | str, *, source: Json) -> LocalObjects:
    """Make an empty cache, or open the one that stands there. `source` is a hint where the data came from.

    Raises UsageError if the directory holds something else.
    """
    objects = LocalObjects(path)
    if not is_cache(objects):
        value = {
            "format": "featurecache",
            "version": FORMAT,
            "uuid": str(uuid.uuid4()),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "source": source,
        }
        objects.put_new("cache.json", sign(value))
    check_version(objects)
    if not objects.exists("zarr.json"):
        objects.put_new("zarr.json", canonical_json(GROUP))
    objects.sweep()
    return objects


def is_cache(objects: LocalObjects) -> bool:
    """Whether a cache stands there; False where there is nothing yet. Raises UsageError if it is something else."""
    for place in (objects.root, *objects.root.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"cannot use {objects.root}: {place} is a file", hint="choose another --out")
    others = [name for name in objects.list() if name != "_tmp"]  # first, since another run may be creating it
    if objects.exists("cache.json"):
        return True
    if others:
        hint = "choose another --out, or an empty directory"
        raise UsageError(f"{objects.root} is not a cache and not empty (it has {others[0]})", hint=hint)
    return False


def check_version(objects: LocalObjects) -> Json:
    """The content of cache.json. Raises CorruptCacheError if it is not a cache of this format."""
    value = read_json(objects, "cache.json")
    if not isinstance(value, dict) or value.get("format") != "featurecache":
        raise CorruptCacheError(f"{objects.root} is not a cache: cache.json is something else")
    if value.get("version") != FORMAT:
        hint = "a newer featurecache may read it"
        raise CorruptCacheError(f"{objects.root} has format {value.get('version')!r}, this is {FORMAT}", hint=hint)
    if not isinstance(value.get("uuid"), str) or not isinstance(value.get("source"), dict):
        raise CorruptCacheError(f"{objects.root} has a cache.json without uuid or source")
    return value


def matching_part(objects: LocalObjects, split: str, kind: str, identity: Json) -> PartSpec | None:
    """The part of this kind with this identity, or None if the split has no part of the kind.

    Raises IdentityError, field by field, if it has one that was made from something else.
    """
    found = find_part(objects, split, kind, identity)
    parts = [part for part in find_parts(objects, split) if part.kind == kind]
    if found or not parts:
        return found
    raise IdentityError(
        f"{objects.root} already holds {parts[0].prefix}, made from something else:",
        fields=differences(parts[0].identity, _as_read(identity)),
        hint="give the options it was made with, or choose another --out",
    )


def find_part(objects: LocalObjects, split: str, kind: str, identity: Json) -> PartSpec | None:
    """The part of this kind with this identity, or None."""
    wanted = hash_json(identity)
    parts = find_parts(objects, split)
    return next((part for part in parts if part.kind == kind and part.recipe_id == wanted), None)


def _create(objects: LocalObjects, part: PartSpec, assets: Mapping[str, bytes]) -> None:
    """Everything that a part consists of besides its shards; part.json comes last and says that it is all there."""
    part = replace(
        part, assets={name: Asset(len(data), hashlib.sha256(data).hexdigest()) for name, data in assets.items()}
    )
    files = {f"{part.prefix}/assets/{name}": data for name, data in assets.items()}
    files |= metadata(part)
    described = sign(part.to_json())
    if len(described) > MAX_PART_BYTES:
        raise UsageError(f"part.json of {part.prefix} would have {len(described):,} bytes", hint="too many class names")
    for key, data in files.items():
        if not objects.put_new(key, data) and objects.get(key, limit=MAX_ASSET_BYTES) != data:
            hint = (
                f"another run began {part.prefix} with other options; if it is not running any more, remove that folder"
            )
            raise IdentityError(f"{key} stands there with another content", hint=hint)
    objects.put_new(f"{part.prefix}/part.json", described)


def _as_read(identity: Json) -> Json:
    """An identity as JSON gives it back, so that a tuple does not differ from a list."""
    return json.loads(canonical_json(identity))


class CacheWriter:
    """Writes the shards of one part. Running it again on the same part writes only what is missing."""

    def __init__(self, objects: LocalObjects, part: PartSpec, *, assets: Mapping[str, bytes] | None = None) -> None:
        """Create the part, or take up the one that stands there. Raises IdentityError if that is another one."""
        self.objects = objects
        if not objects.exists(f"{part.prefix}/part.json"):
            _create(objects, part, assets or {})
        self.part = read_part(objects, part.prefix)
        if self.part.recipe_id != part.recipe_id:
            fields = differences(self.part.identity, _as_read(part.identity))
            raise IdentityError(f"{part.prefix} was made from something else:", fields=fields)

    def pending(self) -> Iterator[Shard]:
        """Shards that are not committed, asked anew for each."""
        return pending_shards(self.objects, self.part)

    def pending_groups(self, views: int) -> Iterator[list[Shard]]:
        """`commit.pending_groups` of this part."""
        return pending_groups(self.objects, self.part, views)

    def is_committed(self, shard: Shard) -> bool:
        """Whether a shard is done, by whichever run."""
        return self.objects.exists(CommitRecord.key(self.part, shard))

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
        self._files: dict[str, ShardFile] = {}
        self._rows = 0
        self._reasons = np.zeros(256, np.int64)
        try:
            for array in part.arrays:
                self._files[array.name] = ShardFile(objects, part, array, shard)
        except BaseException:
            self.discard()
            raise

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
        payloads = {name: file.finish() for name, file in self._files.items()}
        reasons = self._reasons
        if "reason" in payloads and self._files["reason"].adopted:
            reasons = self._standing_reasons(payloads["reason"])
        invalid = {reason.name: int(reasons[reason]) for reason in Reason if reason and reasons[reason]}
        record = CommitRecord(self.shard, tuple(payloads.values()), invalid)
        write_record(self._objects, self._part, record)
        return record

    def discard(self) -> None:
        """Give up the shard: no temporary file of it stays."""
        for file in self._files.values():
            file.discard()

    def _standing_reasons(self, payload: Payload) -> np.ndarray:
        """int64 (256,): how many rows have each reason in the file that stands, which another run wrote."""
        data = self._objects.get(payload.key, limit=payload.bytes)
        return np.bincount(np.frombuffer(data, np.uint8, self.shard.rows), minlength=256)
