"""Commit records say which rows exist; seals say what a whole cache is. Both are create-only JSON."""

import contextlib
import hashlib
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import google_crc32c

from featurecache.errors import CorruptCacheError, IncompleteError, UsageError
from featurecache.fingerprint import canonical_json
from featurecache.store.layout import (
    FORMAT,
    GROUP,
    MAX_PART_BYTES,
    Asset,
    PartSpec,
    Shard,
    array_metadata,
    check_name,
    inner_rows,
    part_from_json,
    shard_bytes,
    shard_key,
)
from featurecache.store.objects import MAX_ASSET_BYTES, MAX_JSON_BYTES, LocalObjects
from featurecache.store.shard_file import Payload
from featurecache.store.validate import check_count, check_hash, check_text, checked_json, read_json, sign
from featurecache.types import ArraySpec, Json, Reason

__all__ = [
    "MAX_SEAL_BYTES",
    "CommitRecord",
    "Hashes",
    "Seal",
    "check_array",
    "check_asset",
    "find_parts",
    "hash_object",
    "is_complete",
    "latest_seal",
    "metadata",
    "part_keys",
    "read_asset",
    "read_part",
    "read_record",
    "read_records",
    "read_seal",
    "record_shard",
    "seal",
    "seal_numbers",
    "splits",
    "write_record",
]

MAX_SEAL_BYTES = 2**28
"""A seal lists every object, so it may be larger than other JSON: about a million objects."""

_BLOCK = 2**22
_NOT_SPLITS = {"seals"}
_RECORD = re.compile(r"([0-9]{5,18})-([0-9]{7,18})\.json")
_SEAL_FIELDS = {"format", "number", "previous", "sealed", "parts", "objects"}
_LISTED_FIELDS = {"key", "bytes", "crc32c", "sha256"}
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
    objects.put_new(CommitRecord.key(part, shard), sign(value))


def read_records(objects: LocalObjects, part: PartSpec) -> dict[tuple[int, int], CommitRecord]:
    """Committed shards by (view, shard number). Raises CorruptCacheError for a record that is not of this part."""
    records = {}
    for name in objects.list(f"{part.prefix}/_commits"):
        shard = record_shard(part, name)
        records[shard.view, shard.index] = read_record(objects, part, shard)
    return records


def record_shard(part: PartSpec, name: str) -> Shard:
    """The shard whose record has this file name. Raises CorruptCacheError if the part has none such."""
    match = _RECORD.fullmatch(name)
    with contextlib.suppress(UsageError):
        shard = part.shard(int(match[1]), int(match[2])) if match else None
        if shard and CommitRecord.key(part, shard) == f"{part.prefix}/_commits/{name}":
            return shard
    raise CorruptCacheError(f"{part.prefix}/_commits/{name} is not a commit record of this part")


def read_record(objects: LocalObjects, part: PartSpec, shard: Shard) -> CommitRecord:
    """What was committed as a shard. Raises CorruptCacheError if there is no record, or not of this shard."""
    key = CommitRecord.key(part, shard)
    value = read_json(objects, key)
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
    return Payload(item["key"], size, check_hash(item["sha256"]), check_count(item["crc32c"], below=2**32), inner)


@dataclass(frozen=True, slots=True)
class Hashes:
    """What an object's bytes must be."""

    bytes: int
    crc32c: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Seal:
    """State n of a cache: every object with its size and hashes. The digest names exactly these bytes."""

    number: int
    digest: str
    parts: tuple[str, ...]
    """Prefixes of the parts it covers, such as "train/rows"."""
    total_bytes: int
    previous: str | None = None
    """Digest of the seal before it."""


def splits(objects: LocalObjects) -> list[str]:
    """Names of the splits that have parts."""
    names = [name for name in objects.list() if not name.startswith("_") and name not in _NOT_SPLITS]
    return [name for name in names if _part_names(objects, name)]


def find_parts(objects: LocalObjects, split: str) -> list[PartSpec]:
    """Every part of a split, complete or not, in name order."""
    return [read_part(objects, f"{split}/{name}") for name in _part_names(objects, split)]


def _part_names(objects: LocalObjects, split: str) -> list[str]:
    return [name for name in objects.list(split) if objects.exists(f"{split}/{name}/part.json")]


def read_part(objects: LocalObjects, prefix: str) -> PartSpec:
    """The part at a prefix. Raises CorruptCacheError if its part.json is not of format 1, or of another place."""
    value = read_json(objects, f"{prefix}/part.json", limit=MAX_PART_BYTES)
    try:
        part = part_from_json(value)
    except CorruptCacheError as error:
        raise CorruptCacheError(f"{prefix}/part.json cannot be: {error.message}", hint=error.hint) from None
    if part.prefix != prefix:
        raise CorruptCacheError(f"{prefix}/part.json is the part.json of {part.prefix}")
    return part


def read_asset(objects: LocalObjects, part: PartSpec, name: str) -> bytes:
    """A data file of a part. Raises CorruptCacheError unless it is the one that part.json names."""
    asset = _asset(objects, part, name)
    data = objects.get(f"{part.prefix}/assets/{name}", limit=asset.bytes)
    if hashlib.sha256(data).hexdigest() != asset.sha256:
        raise CorruptCacheError(f"{part.prefix}/assets/{name} is not what {part.prefix}/part.json names")
    return data


def check_asset(objects: LocalObjects, part: PartSpec, name: str) -> None:
    """What `read_asset` raises, without holding the file in memory."""
    asset = _asset(objects, part, name)
    if hash_object(objects, f"{part.prefix}/assets/{name}").sha256 != asset.sha256:
        raise CorruptCacheError(f"{part.prefix}/assets/{name} is not what {part.prefix}/part.json names")


def _asset(objects: LocalObjects, part: PartSpec, name: str) -> Asset:
    if name not in part.assets:
        raise CorruptCacheError(f"{part.prefix}/part.json names no asset {name}")
    key, asset = f"{part.prefix}/assets/{name}", part.assets[name]
    if asset.bytes > MAX_ASSET_BYTES or objects.size(key) != asset.bytes:
        raise CorruptCacheError(f"{key} is not what {part.prefix}/part.json names: that has {asset.bytes:,} bytes")
    return asset


def hash_object(objects: LocalObjects, key: str) -> Hashes:
    """Size and hashes of an object, in memory that does not grow with it. Raises CorruptCacheError."""
    digest, crc, size = hashlib.sha256(), 0, 0
    with objects.open(key) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            crc, size = google_crc32c.extend(crc, block), size + len(block)
    return Hashes(size, crc, digest.hexdigest())


def metadata(part: PartSpec) -> dict[str, bytes]:
    """Every zarr.json of a part and what must be in it."""
    found = {f"{prefix}/zarr.json": canonical_json(GROUP) for prefix in (part.split, part.prefix)}
    return found | {_array_key(part, array): _array_json(part, array) for array in part.arrays}


def check_array(objects: LocalObjects, part: PartSpec, array: ArraySpec) -> None:
    """Raises CorruptCacheError if an array's zarr.json is not what part.json says of it."""
    key = _array_key(part, array)
    if objects.get(key) != _array_json(part, array):
        raise CorruptCacheError(f"{key} is not the metadata of the array that {part.prefix}/part.json describes")


def is_complete(objects: LocalObjects, part: PartSpec) -> bool:
    """Whether every shard of a part is committed."""
    names = set(objects.list(f"{part.prefix}/_commits"))
    if len(names) < part.shard_count:  # asked first, because a stranger's part may claim a million shards
        return False
    return all(CommitRecord.key(part, shard).rpartition("/")[2] in names for shard in part.shards())


def seal(objects: LocalObjects) -> Seal:
    """Seal all complete parts. The present seal is returned if it covers the same objects.

    Raises IncompleteError if no part is complete.
    """
    parts = [part for split in splits(objects) for part in find_parts(objects, split) if is_complete(objects, part)]
    if not parts:
        raise IncompleteError(f"nothing in {objects.root} is complete yet", hint="run the same `fc extract` again")
    entries = _entries(objects, parts)
    numbers = seal_numbers(objects)
    before, listed = read_seal(objects, numbers[-1]) if numbers else (None, {})
    if before and listed == entries:
        objects.sync("seals")
        return before
    number = before.number + 1 if before else 0
    value = {
        "format": FORMAT,
        "number": number,
        "previous": before.digest if before else None,
        "sealed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parts": [part.prefix for part in parts],
        "objects": [{"key": key, **asdict(entries[key])} for key in sorted(entries)],
    }
    if not objects.put_new(_seal_key(number), sign(value)):
        return seal(objects)  # another run took the number, perhaps with a seal that covers less
    return read_seal(objects, number)[0]


def latest_seal(objects: LocalObjects) -> Seal | None:
    """The newest seal, or None. Raises CorruptCacheError if it cannot be read."""
    numbers = seal_numbers(objects)
    return read_seal(objects, numbers[-1])[0] if numbers else None


def seal_numbers(objects: LocalObjects) -> list[int]:
    """Numbers of the seals that are there, in order."""
    return sorted(int(match[1]) for name in objects.list("seals") if (match := _SEAL.fullmatch(name)))


def read_seal(objects: LocalObjects, number: int) -> tuple[Seal, dict[str, Hashes]]:
    """A seal, and what it says of every object. Raises CorruptCacheError if it is not one."""
    key = _seal_key(number)
    data = objects.get(key, limit=_seal_limit(objects, key))
    value = checked_json(data, key)
    try:
        if value["format"] != FORMAT or value["number"] != number or isinstance(value["number"], bool):
            raise CorruptCacheError(f"{key} is not seal {number} of format {FORMAT}")
        if value.keys() != _SEAL_FIELDS:
            raise ValueError("it has other fields than a seal")
        check_text(value["sealed"])
        listed = _listed(objects, value["objects"])
        for prefix in value["parts"]:
            split, _, name = check_text(prefix).partition("/")
            check_name(split, "split")
            check_name(name, "part")
        previous = value["previous"] if value["previous"] is None else check_hash(value["previous"])
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptCacheError(f"{key} is not a seal: {error}") from None
    total = sum(hashes.bytes for hashes in listed.values())
    return Seal(number, hashlib.sha256(data).hexdigest(), tuple(value["parts"]), total, previous), listed


def _listed(objects: LocalObjects, entries: Sequence[Mapping[str, Json]]) -> dict[str, Hashes]:
    """Raises KeyError, TypeError, ValueError or UsageError for what cannot be a list of objects."""
    if not all(entry.keys() == _LISTED_FIELDS for entry in entries):
        raise ValueError("an object has other fields than key, bytes, crc32c and sha256")
    keys = [check_text(entry["key"]) for entry in entries]
    if not all(before < after for before, after in pairwise(keys)):
        raise ValueError("its objects are not in order")
    for key in keys:
        objects.path(key)
    return {
        key: Hashes(check_count(entry["bytes"]), check_count(entry["crc32c"], below=2**32), check_hash(entry["sha256"]))
        for key, entry in zip(keys, entries, strict=True)
    }


def _seal_key(number: int) -> str:
    return f"seals/{number}.json"


def _seal_limit(objects: LocalObjects, key: str) -> int:
    """Largest size of a seal: what so many objects as there are can fill, so that a false one cannot fill memory."""
    if objects.size(key) <= MAX_JSON_BYTES:
        return MAX_JSON_BYTES
    files = sum(len(names) for _, _, names in os.walk(objects.root))
    return min(MAX_SEAL_BYTES, MAX_JSON_BYTES + 512 * files)


def _array_key(part: PartSpec, array: ArraySpec) -> str:
    return f"{part.prefix}/{array.name}/zarr.json"


def _array_json(part: PartSpec, array: ArraySpec) -> bytes:
    return canonical_json(array_metadata(part, array))


def part_keys(part: PartSpec) -> set[str]:
    """Every object of a complete part but its payloads, and the two of the whole cache."""
    assets = {f"{part.prefix}/assets/{name}" for name in part.assets}
    records = {CommitRecord.key(part, shard) for shard in part.shards()}
    return {"cache.json", "zarr.json", f"{part.prefix}/part.json", *metadata(part), *assets, *records}


def _entries(objects: LocalObjects, parts: Sequence[PartSpec]) -> dict[str, Hashes]:
    """Size and hashes of every object that the parts consist of."""
    entries = {}
    for part in parts:
        objects.sync(f"{part.prefix}/_commits")  # of another run too, which may have been killed before it did so
        for record in read_records(objects, part).values():
            for payload in record.payloads:
                if objects.size(payload.key) != payload.bytes:
                    raise CorruptCacheError(f"{payload.key} is not the object that was committed")
                entries[payload.key] = Hashes(payload.bytes, payload.crc32c, payload.sha256)
    for key in set().union(*map(part_keys, parts)):
        entries[key] = hash_object(objects, key)
    return entries
