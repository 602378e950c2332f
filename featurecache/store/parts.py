"""Parts as they lie in a cache: part.json read without trust, the metadata that belongs to it, its assets."""

import hashlib

import numpy as np

from featurecache.encodings import ENCODINGS
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.fingerprint import canonical_json
from featurecache.store.hashes import hash_object
from featurecache.store.layout import (
    FORMAT,
    GROUP,
    MAX_PART_BYTES,
    OFFSETS,
    REASON,
    VALID,
    Asset,
    EncodedOutput,
    PartSpec,
    array_metadata,
    check_name,
    check_scale,
)
from featurecache.store.objects import MAX_ASSET_BYTES, LocalObjects
from featurecache.store.validate import check_count, check_hash, check_text, read_json
from featurecache.types import ArraySpec, Json, OutputSpec

__all__ = [
    "check_array",
    "check_asset",
    "find_parts",
    "metadata",
    "part_from_json",
    "read_asset",
    "read_part",
    "splits",
]

_NOT_SPLITS = {"seals"}
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_TEXT_FACTS = {
    "teacher": ("teacher", "teacher_id"),
    "probe": ("teacher_id", "input"),
    "views": ("proof",),
    "inputs": ("proof",),
}
_SHARED_ARRAYS = (VALID, REASON, ArraySpec("input_hash", "uint64"))
_ROWS_ARRAYS = (
    ArraySpec("key_hash", "uint8", (16,), ("byte",)),
    ArraySpec("key_offsets", "int64", (2,), ("bound",)),
    ArraySpec("label", "int32"),
    ArraySpec("content_hash", "uint64"),
)
_RAGGED = ("key_text", "tokens")
_DTYPES = ("float32", "float16", "int8", "uint8", "uint16", "uint64", "int32", "int64")


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


def metadata(part: PartSpec) -> dict[str, bytes]:
    """Every zarr.json of a part and what must be in it."""
    found = {f"{prefix}/zarr.json": canonical_json(GROUP) for prefix in (part.split, part.prefix)}
    return found | {_array_key(part, array): _array_json(part, array) for array in part.arrays}


def check_array(objects: LocalObjects, part: PartSpec, array: ArraySpec) -> None:
    """Raises CorruptCacheError if an array's zarr.json is not what part.json says of it."""
    key = _array_key(part, array)
    if objects.get(key) != _array_json(part, array):
        raise CorruptCacheError(f"{key} is not the metadata of the array that {part.prefix}/part.json describes")


def _array_key(part: PartSpec, array: ArraySpec) -> str:
    return f"{part.prefix}/{array.name}/zarr.json"


def _array_json(part: PartSpec, array: ArraySpec) -> bytes:
    return canonical_json(array_metadata(part, array))


def part_from_json(value: Json) -> PartSpec:
    """The part that part.json describes. Raises CorruptCacheError where it does not fit format 1."""
    try:
        canonical_json(value)  # refuses infinite numbers and broken text, wherever they are
        if value["format"] != FORMAT:
            raise CorruptCacheError(f"format {value['format']!r} is unknown", hint="a newer featurecache may read it")
        part = PartSpec(
            name=value["name"],
            kind=check_text(value["kind"]),
            split=value["split"],
            rows=check_count(value["rows"]),
            identity=value["identity"],
            arrays=tuple(_array_from_json(array) for array in value["arrays"]),
            views=None if value["views"] is None else _views_from_json(*value["views"]),
            outputs=tuple(_output_from_json(output) for output in value["outputs"]),
            assets={name: _asset_from_json(name, asset) for name, asset in value["assets"].items()},
            facts=value["facts"],
            provenance=value["provenance"],
        )
        derived = part.to_json()
        if any(derived[name] != value[name] for name in ("recipe_id", "rows_per_shard", "arrays")):
            raise CorruptCacheError(f"part.json of {part.prefix} does not agree with itself")
        _check_facts(part)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CorruptCacheError(f"part.json does not describe a part of format {FORMAT}: {error}") from error
    return part


def _array_from_json(value: Json) -> ArraySpec:
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"the data type {value['dtype']!r} is not part of format {FORMAT}")
    shape, dimensions = tuple(map(check_count, value["shape"])), tuple(map(check_text, value["dimensions"]))
    return ArraySpec(check_text(value["name"]), value["dtype"], shape, dimensions, check_count(value["longest"]))


def _asset_from_json(name: str, value: Json) -> Asset:
    check_name(name, "asset")
    return Asset(check_count(value["bytes"]), check_hash(value["sha256"]))


def _output_from_json(value: Json) -> EncodedOutput:
    shape, classes = tuple(map(check_count, value["shape"])), tuple(map(check_text, value["classes"]))
    scale = tuple(map(_scale_from_json, value.get("scale", [])))
    longest, heads = check_count(value.get("longest", 0)), check_count(value.get("heads", 0))
    spec = OutputSpec(check_text(value["name"]), shape, classes, longest, heads)
    output = EncodedOutput(spec, check_text(value["encoding"]), scale)
    check_scale(output)
    return output


def _scale_from_json(value: Json) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LARGEST_FLOAT32:
        raise ValueError(f"{str(value)[:40]!r} is no scale")
    return float(value)


def _views_from_json(first: Json, stop: Json) -> tuple[int, int]:
    return check_count(first), check_count(stop)


def _check_facts(part: PartSpec) -> None:
    """Raises KeyError, TypeError or ValueError where a part lacks what readers look for in its kind."""
    facts, identity = part.facts, part.identity
    for output in part.outputs:
        if output.encoding.partition(":")[0] not in (*ENCODINGS, "head"):
            raise ValueError(f"the encoding {output.encoding[:40]!r} is unknown")
    if not all(isinstance(value, dict) for value in (facts, identity, part.provenance)):
        raise TypeError("identity, facts and provenance are JSON objects")
    for name in _TEXT_FACTS.get(part.kind, ()):
        check_text(facts[name])
    known = {array.name: array for array in (_ROWS_ARRAYS if part.kind == "rows" else _SHARED_ARRAYS)}
    for array in part.arrays:
        if array != known.get(array.name, array) or (array.name in _RAGGED and not array.longest):
            raise ValueError(f"its array {array.name} is another")
    _check_ragged(part)
    if part.kind == "rows":
        check_text(identity["fingerprint"])
        if facts["modality"] not in ("image", "text") or not isinstance(facts["class_names"], list):
            raise ValueError("rows are images or texts, and have a list of class names")
        for name in facts["class_names"]:
            check_text(name)
    if part.kind == "probe":
        check_count(facts["order"])
    if part.kind == "teacher":
        check_count(facts.get("order", 0))
        if not isinstance(facts["input"], dict):
            raise TypeError("a teacher's input is a JSON object")
    if part.kind == "views":
        check_text(facts["augmentation"]["name"])
        check_count(facts["seed"], below=2**63)
        if part.views is None or part.views[0] < 1:
            raise ValueError("view 0 is the plain one, and has no parameters")


def _check_ragged(part: PartSpec) -> None:
    """Raises ValueError unless ragged arrays are those that a part of its kind has, with what finds their rows."""
    arrays = {array.name: array for array in part.arrays if array.longest}
    if part.kind != "teacher":
        if any(array.shape for array in arrays.values()) or any(item.output.longest for item in part.outputs):
            raise ValueError("only what teachers give has a vector for each token")
        return
    outputs = {item.output.name: item for item in part.outputs if item.output.longest}
    if arrays.keys() != outputs.keys() or len({array.longest for array in arrays.values()}) > 1:
        raise ValueError("its arrays of tokens are not those of its outputs")
    for name, item in outputs.items():
        expected = item.encoding, item.output.shape, item.output.longest
        if (arrays[name].dtype, arrays[name].shape, arrays[name].longest) != expected or len(item.output.shape) != 1:
            raise ValueError(f"its array {name} does not hold a vector for each token")
    if outputs and OFFSETS not in part.arrays:
        raise ValueError("nothing tells where the tokens of a row are")
