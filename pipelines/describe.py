"""What a cache holds, and how far it is: plain facts for `fc info`, `fc status` and whoever asks in Python."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.types import Json, Reason

if TYPE_CHECKING:
    from featurecache.store.commit import CommitRecord
    from featurecache.store.layout import EncodedOutput, PartSpec
    from featurecache.store.objects import LocalObjects

__all__ = ["count_invalid", "describe_cache", "describe_progress", "output_text"]

_BY_TEMPERATURE = {"kl": "mean KL", "mass": "probability kept", "distance": "mean distance"}
_TEMPERATURE = re.compile(r"[0-9.e+-]{1,24}")


def describe_cache(path: Path | str) -> Json:
    """Splits, parts, outputs, encodings, invalid rows, sizes, seal. Raises UsageError if there is no cache."""
    from featurecache.store.reader import open_cache

    cache = open_cache(path)
    return {
        "cache": str(path),
        "digest": cache.seal.digest if cache.seal else None,
        "sealed": cache.seal is not None,
        "bytes": sum(cache.objects.sizes()),
        "source": cache.source,
        "splits": {
            split: {part.name: _describe_part(cache.objects, part) for part in cache.parts(split)}
            for split in cache.splits
        },
    }


def describe_progress(path: Path | str) -> Json:
    """Committed and missing rows of every part, from commit records alone; complete is a cache that is sealed too.

    `under_way` is how many shards running extractions are at work on; `not_begun` are splits without a teacher's part.
    """
    from featurecache.store.claims import count_claims
    from featurecache.store.commit import read_records
    from featurecache.store.reader import open_cache

    cache = open_cache(path)
    parts = {}
    for part in cache.all_parts():
        done = read_records(cache.objects, part)
        committed = sum(record.shard.rows for record in done.values())
        parts[part.prefix] = {
            "rows": part.rows * len(range(*part.views or (0, 1))),
            "committed": committed,
            "shards": f"{len(done)}/{part.shard_count}",
            "complete": len(done) == part.shard_count,
        }
    sealed = cache.seal is not None
    taught = {part.split for part in cache.all_parts() if part.kind == "teacher"}
    is_covered = cache.seal is not None and parts.keys() <= set(cache.seal.parts)
    complete = is_covered and all(part["complete"] for part in parts.values()) and taught == set(cache.splits)
    return {
        "cache": str(path),
        "sealed": sealed,
        "complete": complete,
        "under_way": count_claims(cache.objects),
        "not_begun": sorted(set(cache.splits) - taught),
        "parts": parts,
    }


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
    if part.views and part.views != (0, 1):
        facts["views"] = f"{part.views[0]} to {part.views[1] - 1}"
    if part.kind == "views":
        facts["augmentation"] = _augmentation_text(part)
    if part.kind == "inputs":
        facts["input"] = _input_text(part.facts.get("input"))
    if part.kind == "teacher":
        facts["teacher"] = part.facts["teacher"]
        teacher = part.identity.get("teacher")  # a stranger's cache may have anything
        known = teacher if isinstance(teacher, dict) else {}
        facts |= {name: known.get(name) for name in ("weights_sha256", "records_sha256")}
        facts["invalid"] = count_invalid(records.values())
    if part.kind == "probe":
        facts |= {name: part.provenance.get(name) for name in ("labels", "validation_accuracy")}
    facts["outputs"] = {output.output.name: output_text(part, output) for output in part.outputs}
    return {name: value for name, value in facts.items() if value not in ({}, None)}


def _augmentation_text(part: "PartSpec") -> str:
    """ "standard 1 (crop, flip, colour), seed 0"; a stranger's cache may have anything."""
    value = part.facts["augmentation"]
    steps = value.get("operations")
    named = [str(step.get("name")) for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    inside = f" ({', '.join(named)})" if named else ""
    return f"{value['name']} {value.get('version')}{inside}, seed {part.facts['seed']}"


def _input_text(value: Json) -> str | None:
    """ "images of 160 pixels", or "tokens, at most 128 a text"; a stranger's cache may have anything."""
    if not isinstance(value, dict):
        return None
    size, length = value.get("size"), value.get("max_length")
    if value.get("kind") == "image" and _is_number(size):
        return f"images of {size} pixels"
    return f"tokens, at most {length} a text" if _is_number(length) else None


def output_text(part: "PartSpec", output: "EncodedOutput") -> str:
    """ "[384] int8:row", and what the encoding costs where that was measured."""
    costs = part.provenance.get("encoding_cost")
    cost = costs.get(output.output.name) if isinstance(costs, dict) else None
    measured = _cost_text(cost) if isinstance(cost, dict) else ""
    each = " for each token" if output.output.longest else ""
    return f"{list(output.output.shape)}{each} {output.encoding}" + (f": {measured}" if measured else "")


def _cost_text(cost: Json) -> str:
    """ "cosine 0.999974 (lowest 0.999937), largest error 0.0031, on 256 rows"; a stranger's cache may have anything."""
    known = {name: value for name, value in cost.items() if _is_number(value)}
    words = ["nothing is lost"] if known.get("largest_error") == 0 else _lost(cost, known)
    return ", ".join([*words, f"on {known['rows']:,} rows"]) if words and "rows" in known else ""


def _lost(cost: Json, known: dict[str, int | float]) -> list[str]:
    words = []
    if "cosine" in known and "lowest_cosine" in known:
        words.append(f"cosine {known['cosine']:.6f} (lowest {known['lowest_cosine']:.6f})")
    if "largest_error" in known:
        words.append(f"largest error {known['largest_error']:.2g}")
    words += [f"{text} {value}" for name, text in _BY_TEMPERATURE.items() if (value := _numbers(cost.get(name)))]
    if "agreement" in known:
        words.append(f"same first class {known['agreement']:.2%}")
    return words


def _numbers(value: Json) -> str:
    """ "0.0012", or "0.0012 at T=1, 0.0034 at T=2"; nothing for what is no number."""
    if _is_number(value):
        return f"{value:.2g}"
    items = value.items() if isinstance(value, dict) else ()
    known = {name: number for name, number in items if _is_number(number) and _TEMPERATURE.fullmatch(name)}
    return ", ".join(f"{number:.3g} at T={name}" for name, number in known.items())


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e12
