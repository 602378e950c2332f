"""Seals say what a whole cache is: every object with its size and hashes, in create-only JSON, each naming the last."""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from featurecache.errors import CorruptCacheError, IncompleteError, UsageError
from featurecache.store.commit import CommitRecord, is_complete, read_records
from featurecache.store.hashes import Hashes, hash_object
from featurecache.store.layout import FORMAT, PartSpec, check_name
from featurecache.store.objects import MAX_JSON_BYTES, LocalObjects
from featurecache.store.parts import find_parts, metadata, splits
from featurecache.store.validate import check_count, check_hash, check_text, checked_json, sign
from featurecache.types import Json

__all__ = ["MAX_SEAL_BYTES", "Seal", "latest_seal", "part_keys", "read_seal", "seal", "seal_numbers"]

MAX_SEAL_BYTES = 2**28
"""A seal lists every object, so it may be larger than other JSON: about a million objects."""

_SEAL_FIELDS = {"format", "number", "previous", "sealed", "parts", "objects"}
_LISTED_FIELDS = {"key", "bytes", "crc32c", "sha256"}
_SEAL = re.compile(r"(0|[1-9][0-9]{0,8})\.json")


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
    files = sum(1 for _ in objects.sizes())
    return min(MAX_SEAL_BYTES, MAX_JSON_BYTES + 512 * files)


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
