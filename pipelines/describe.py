"""What a cache holds, and how far it is: plain facts for `fc info`, `fc status` and whoever asks in Python."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.types import Json, Reason

if TYPE_CHECKING:
    from featurecache.store.commit import CommitRecord
    from featurecache.store.layout import PartSpec
    from featurecache.store.objects import LocalObjects

__all__ = ["count_invalid", "describe_cache", "describe_progress"]


def describe_cache(path: Path | str) -> Json:
    """Splits, parts, outputs, encodings, invalid rows, sizes, seal. Raises UsageError if there is no cache."""
    from featurecache.store.reader import open_cache

    cache = open_cache(path)
    return {
        "cache": str(path),
        "digest": cache.seal.digest if cache.seal else None,
        "sealed": cache.seal is not None,
        "bytes": sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file()),
        "source": cache.source,
        "splits": {
            split: {part.name: _describe_part(cache.objects, part) for part in cache.parts(split)}
            for split in cache.splits
        },
    }


def describe_progress(path: Path | str) -> Json:
    """Committed and missing rows of every part, from commit records alone; complete is a cache that is sealed too."""
    from featurecache.store.commit import read_records
    from featurecache.store.reader import open_cache

    cache = open_cache(path)
    parts = {}
    for part in cache.all_parts():
        shards = part.shards()
        done = read_records(cache.objects, part)
        committed = sum(record.shard.rows for record in done.values())
        parts[part.prefix] = {
            "rows": sum(shard.rows for shard in shards),
            "committed": committed,
            "shards": f"{len(done)}/{len(shards)}",
            "complete": len(done) == len(shards),
        }
    sealed = cache.seal is not None
    taught = {part.split for part in cache.all_parts() if part.kind == "teacher"}
    complete = sealed and all(part["complete"] for part in parts.values()) and taught == set(cache.splits)
    return {"cache": str(path), "sealed": sealed, "complete": complete, "parts": parts}


def count_invalid(records: "Iterable[CommitRecord]") -> dict[str, int]:
    """Invalid rows of a part by reason, in words."""
    counts: dict[str, int] = {}
    for record in records:
        for name, count in record.invalid.items():
            counts[Reason[name].text] = counts.get(Reason[name].text, 0) + count
    return counts


def _describe_part(objects: "LocalObjects", part: "PartSpec") -> Json:
    from featurecache.store.commit import read_records

    facts: dict[str, Json] = {"kind": part.kind, "rows": part.rows, "recipe_id": part.recipe_id}
    records = read_records(objects, part)
    facts["bytes"] = sum(payload.bytes for record in records.values() for payload in record.payloads)
    if part.kind == "rows":
        facts |= {"modality": part.facts["modality"], "classes": len(part.facts["class_names"])}
    if part.kind == "teacher":
        facts["teacher"] = part.facts["teacher"]
        facts["weights_sha256"] = part.identity["teacher"].get("weights_sha256")
        facts["invalid"] = count_invalid(records.values())
    if part.kind == "probe":
        facts |= {name: part.provenance[name] for name in ("labels", "validation_accuracy")}
    facts["outputs"] = {output.output.name: f"{list(output.output.shape)} {output.encoding}" for output in part.outputs}
    return {name: value for name, value in facts.items() if value not in ({}, None)}
