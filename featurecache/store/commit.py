"""Commit records say which rows exist: create-only JSON, one file for each shard, over all arrays of a part."""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.layout import FORMAT, PartSpec, Shard, inner_rows, shard_bytes, shard_key
from featurecache.store.objects import LocalObjects
from featurecache.store.shard_file import Payload
from featurecache.store.validate import check_count, check_hash, read_json, sign
from featurecache.types import ArraySpec, Json, Reason

__all__ = [
    "CommitRecord",
    "is_complete",
    "pending_groups",
    "pending_shards",
    "read_record",
    "read_records",
    "record_shard",
    "write_record",
]

_RECORD = re.compile(r"([0-9]{5,18})-([0-9]{7,18})\.json")


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


def pending_shards(objects: LocalObjects, part: PartSpec) -> Iterator[Shard]:
    """Shards that are not committed, asked anew for each, so that another run's work is not done twice."""
    return (shard for shard in part.shards() if not objects.exists(CommitRecord.key(part, shard)))


def pending_groups(objects: LocalObjects, part: PartSpec, views: int) -> Iterator[list[Shard]]:
    """The same shards by their rows: up to so many views of one row range at a time, asked anew for each."""
    first, stop = part.views or (0, 1)
    for index in range(part.shard_count // (stop - first)):
        for start in range(first, stop, views):
            every = [part.shard(view, index) for view in range(start, min(start + views, stop))]
            if group := [shard for shard in every if not objects.exists(CommitRecord.key(part, shard))]:
                yield group


def is_complete(objects: LocalObjects, part: PartSpec) -> bool:
    """Whether every shard of a part is committed."""
    names = set(objects.list(f"{part.prefix}/_commits"))
    if len(names) < part.shard_count:  # asked first, because a stranger's part may claim a million shards
        return False
    return all(CommitRecord.key(part, shard).rpartition("/")[2] in names for shard in part.shards())
