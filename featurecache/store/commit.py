"""Commit records say which rows exist; seals say what a whole cache is. Both are create-only JSON."""

import hashlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import google_crc32c

from featurecache.errors import CorruptCacheError, IncompleteError
from featurecache.fingerprint import canonical_json
from featurecache.store.layout import (
    FORMAT,
    MAX_PART_BYTES,
    PartSpec,
    Shard,
    inner_rows,
    part_from_json,
    shard_bytes,
    shard_key,
)
from featurecache.store.objects import MAX_ASSET_BYTES, LocalObjects
from featurecache.store.shard_file import Payload
from featurecache.store.validate import check_count, check_text, parse_json, read_json
from featurecache.types import ArraySpec, Json, Reason

__all__ = [
    "MAX_SEAL_BYTES",
    "CommitRecord",
    "Seal",
    "find_parts",
    "is_complete",
    "latest_seal",
    "read_part",
    "read_records",
    "seal",
    "splits",
    "write_record",
]

MAX_SEAL_BYTES = 2**28
"""A seal lists every object, so it may be larger than other JSON: about a million objects."""

_NOT_SPLITS = {"seals"}
_SEAL = re.compile(r"(0|[1-9][0-9]{0,8})\.json")


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One shard of a part, durable in all its arrays."""

    shard: Shard
    payloads: tuple[Payload, ...]
    invalid: dict[str, int] = field(default_factory=dict)
    """How many rows are invalid, by reason."""

    @staticmethod
    def key(part: PartSpec, shard: Shard) -> str:
        """Where the record of a shard is."""
        return f"{part.prefix}/_commits/{shard.view:05d}-{shard.index:07d}.json"


def write_record(objects: LocalObjects, part: PartSpec, record: CommitRecord) -> None:
    """Commit a shard whose payloads are durable. Nothing happens if another run did it first."""
    shard = record.shard
    value = {
        "format": FORMAT,
        "recipe_id": part.recipe_id,
        "view": shard.view,
        "shard": shard.index,
        "rows": [shard.start, shard.stop],
        "invalid": record.invalid,
        "objects": [payload.to_json() for payload in record.payloads],
    }
    objects.put_new(CommitRecord.key(part, shard), canonical_json(value))


def read_records(objects: LocalObjects, part: PartSpec) -> dict[tuple[int, int], CommitRecord]:
    """Committed shards by (view, shard number). Raises CorruptCacheError for a record that is not of this part."""
    expected = {CommitRecord.key(part, shard): shard for shard in part.shards()}
    records = {}
    for name in objects.list(f"{part.prefix}/_commits"):
        key = f"{part.prefix}/_commits/{name}"
        if key not in expected:
            raise CorruptCacheError(f"{key} is not a commit record of this part")
        shard = expected[key]
        records[shard.view, shard.index] = _parse(read_json(objects, key), part, shard, key)
    return records


def _parse(value: Json, part: PartSpec, shard: Shard, key: str) -> CommitRecord:
    expected = (FORMAT, part.recipe_id, shard.view, shard.index, [shard.start, shard.stop])
    try:
        if tuple(value[name] for name in ("format", "recipe_id", "view", "shard", "rows")) != expected:
            raise CorruptCacheError(f"{key} belongs to another part")
        arrays = zip(value["objects"], part.arrays, strict=True)
        payloads = tuple(_payload(item, part, array, shard) for item, array in arrays)
        invalid = {Reason[name].name: check_count(count) for name, count in value["invalid"].items()}
        return CommitRecord(shard, payloads, invalid)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCacheError(f"{key} is not a commit record: {error}") from None


def _payload(item: Json, part: PartSpec, array: ArraySpec, shard: Shard) -> Payload:
    """Raises KeyError, TypeError or ValueError if this is no shard that the array can have."""
    inner = tuple(check_count(checksum, below=2**32) for checksum in item["inner_crc32c"])
    step = part.rows_per_shard
    most = step // inner_rows(array, step)
    chunks = range(1, most + 1) if array.longest else [math.ceil(shard.rows / inner_rows(array, step))]
    size = check_count(item["bytes"])
    if item["key"] != shard_key(part, array, shard) or len(inner) not in chunks:
        raise ValueError(f"no shard of {array.name}")
    if size != shard_bytes(array, step, len(inner)):
        raise ValueError(f"a shard of {array.name} with {len(inner)} inner chunks cannot have {size:,} bytes")
    return Payload(item["key"], size, check_text(item["sha256"]), check_count(item["crc32c"], below=2**32), inner)


@dataclass(frozen=True, slots=True)
class Seal:
    """State n of a cache: every object with its size and hashes. The digest names exactly these bytes."""

    number: int
    digest: str
    parts: tuple[str, ...]
    """Prefixes of the parts it covers, such as "train/rows"."""
    total_bytes: int


def splits(objects: LocalObjects) -> list[str]:
    """Names of the splits that have parts."""
    names = [name for name in objects.list() if not name.startswith("_") and name not in _NOT_SPLITS]
    return [name for name in names if find_parts(objects, name)]


def find_parts(objects: LocalObjects, split: str) -> list[PartSpec]:
    """Every part of a split, complete or not, in name order."""
    names = [name for name in objects.list(split) if objects.exists(f"{split}/{name}/part.json")]
    return [read_part(objects, f"{split}/{name}") for name in names]


def read_part(objects: LocalObjects, prefix: str) -> PartSpec:
    """The part at a prefix. Raises CorruptCacheError if its part.json is not of format 1, or of another place."""
    part = part_from_json(read_json(objects, f"{prefix}/part.json", limit=MAX_PART_BYTES))
    if part.prefix != prefix:
        raise CorruptCacheError(f"{prefix}/part.json is the part.json of {part.prefix}")
    return part


def is_complete(objects: LocalObjects, part: PartSpec) -> bool:
    """Whether every shard of a part is committed."""
    return all(objects.exists(CommitRecord.key(part, shard)) for shard in part.shards())


def seal(objects: LocalObjects) -> Seal:
    """Seal all complete parts. The present seal is returned if it covers the same objects.

    Raises IncompleteError if no part is complete.
    """
    parts = [part for split in splits(objects) for part in find_parts(objects, split) if is_complete(objects, part)]
    if not parts:
        raise IncompleteError(f"nothing in {objects.root} is complete yet", hint="run the same `fc extract` again")
    entries = sorted(_entries(objects, parts), key=lambda entry: str(entry["key"]))
    before, listed = _read_latest(objects) or (None, [])
    if before and listed == entries:
        return before
    number = before.number + 1 if before else 0
    prefixes = [part.prefix for part in parts]
    value = {
        "format": FORMAT,
        "number": number,
        "previous": before.digest if before else None,
        "sealed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parts": prefixes,
        "objects": entries,
    }
    data = canonical_json(value)
    if not objects.put_new(_seal_key(number), data):
        return seal(objects)  # another run took the number, perhaps with a seal that covers less
    total = sum(entry["bytes"] for entry in entries)
    return Seal(number, hashlib.sha256(data).hexdigest(), tuple(prefixes), total)


def latest_seal(objects: LocalObjects) -> Seal | None:
    """The newest seal, or None. Raises CorruptCacheError if it cannot be read."""
    found = _read_latest(objects)
    return found[0] if found else None


def _read_latest(objects: LocalObjects) -> tuple[Seal, list[Json]] | None:
    """The newest seal and the objects it lists."""
    found = [match for name in objects.list("seals") if (match := _SEAL.fullmatch(name))]
    if not found:
        return None
    number = max(int(match[1]) for match in found)
    key = _seal_key(number)
    data = objects.get(key, limit=MAX_SEAL_BYTES)
    value = parse_json(data, key)
    try:
        if value["format"] != FORMAT or value["number"] != number:
            raise CorruptCacheError(f"{key} is not seal {number} of format {FORMAT}")
        total = sum(check_count(entry["bytes"]) for entry in value["objects"])
        parts = tuple(map(check_text, value["parts"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCacheError(f"{key} is not a seal: {error}") from None
    return Seal(number, hashlib.sha256(data).hexdigest(), parts, total), value["objects"]


def _seal_key(number: int) -> str:
    return f"seals/{number}.json"


def _entries(objects: LocalObjects, parts: Sequence[PartSpec]) -> list[Json]:
    """Key, size and hashes of every object that the parts consist of."""
    keys = {"cache.json", "zarr.json"}
    entries = []
    for part in parts:
        keys |= {f"{part.split}/zarr.json", f"{part.prefix}/zarr.json", f"{part.prefix}/part.json"}
        keys |= {f"{part.prefix}/{array.name}/zarr.json" for array in part.arrays}
        keys |= {f"{part.prefix}/assets/{name}" for name in objects.list(f"{part.prefix}/assets")}
        for record in read_records(objects, part).values():
            keys.add(CommitRecord.key(part, record.shard))
            for payload in record.payloads:
                if objects.size(payload.key) != payload.bytes:
                    raise CorruptCacheError(f"{payload.key} is not the object that was committed")
                hashes = {"bytes": payload.bytes, "crc32c": payload.crc32c, "sha256": payload.sha256}
                entries.append({"key": payload.key, **hashes})
    for key in keys:
        data = objects.get(key, limit=MAX_ASSET_BYTES)
        hashes = {"bytes": len(data), "crc32c": google_crc32c.value(data), "sha256": hashlib.sha256(data).hexdigest()}
        entries.append({"key": key, **hashes})
    return entries
