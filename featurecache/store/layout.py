"""Format 1: what a part is, how its arrays are cut into shards, and where everything has its place.

`docs/format.md` says the same in prose. Nothing here reads or writes a file.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurecache.errors import UsageError
from featurecache.fingerprint import hash_json
from featurecache.types import ArraySpec, Json, OutputSpec, Reason

__all__ = [
    "FORMAT",
    "GROUP",
    "MAX_PART_BYTES",
    "MOST_AXES",
    "OFFSETS",
    "REASON",
    "RESERVED_NAMES",
    "VALID",
    "Asset",
    "EncodedOutput",
    "PartSpec",
    "Shard",
    "array_metadata",
    "check_name",
    "check_scale",
    "inner_rows",
    "rows_per_shard",
    "shard_bytes",
    "shard_key",
]

FORMAT = 1

VALID = ArraySpec("valid", "uint8")
"""1 where the row holds outputs, 0 where the sample could not be decoded or its output is not finite."""
REASON = ArraySpec("reason", "uint8")
"""The `types.Reason` of a row."""
OFFSETS = ArraySpec("offsets", "int64", (2,), ("bound",))
"""Where the tokens of a row start and stop in the ragged arrays beside it; equal where it has none."""

GROUP: Json = {"zarr_format": 3, "node_type": "group", "attributes": {}}

MAX_PART_BYTES = 2**24
"""Largest part.json: room for the names of a million classes."""
MOST_AXES = 30
"""Of an array besides view and sample; numpy 1 knows 32 in all."""
RESERVED_NAMES = frozenset({"assets", "seals", "c", "zarr.json", "cache.json", "part.json"})
"""What nothing in a cache may be called, because it stands for something else there."""

_NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)*")
_MAX_SHARD_BYTES = 64 * 2**20
_INNER_BYTES = 512 * 2**10
_MAX_ROW_BYTES = 2**30
_MAX_SHARDS = 2**20


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows [start, stop) of one view: the unit of work, commit and resume, over all arrays of a part."""

    view: int
    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class EncodedOutput:
    """One output of a part and how it is kept."""

    output: OutputSpec
    encoding: str
    scale: tuple[float, ...] = ()
    """Of "int8:column": one for each number of a row, in C order; other encodings have none."""

    def to_json(self) -> Json:
        """As it stands in part.json. Raises UsageError if the scales are not there that the encoding needs."""
        check_scale(self)
        more = {"scale": list(self.scale), "longest": self.output.longest, "heads": self.output.heads}
        return {
            "name": self.output.name,
            "shape": list(self.output.shape),
            "classes": list(self.output.classes),
            "encoding": self.encoding,
            **{name: value for name, value in more.items() if value},
        }


@dataclass(frozen=True, slots=True)
class Asset:
    """Size and SHA-256 of a part's data file: a tokenizer, a head."""

    bytes: int
    sha256: str

    def to_json(self) -> Json:
        """As it stands in part.json."""
        return {"bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """All that part.json says: what a part is, how it was made, and how its rows are cut into shards."""

    name: str
    kind: str
    """"rows", "teacher", "probe", "views" or "inputs"."""
    split: str
    rows: int
    identity: Json
    """What the part should be; its hash is the recipe_id."""
    arrays: tuple[ArraySpec, ...]
    views: tuple[int, int] | None = None
    """First view and one past the last; None for a part that has no view axis."""
    outputs: tuple[EncodedOutput, ...] = ()
    assets: dict[str, Asset] = field(default_factory=dict)
    """Data files beside the arrays, by name; the writer fills it in."""
    facts: Json = field(default_factory=dict)
    """What the reader needs besides: class names, the network's input, ..."""
    provenance: Json = field(default_factory=dict)
    """How it came about (versions, time): never part of the identity."""

    def __post_init__(self) -> None:
        check_name(self.split, "split")
        check_name(self.name, "part")
        for array in self.arrays:
            _check_array(array)
        if not 1 <= len({array.name for array in self.arrays}) == len(self.arrays):
            raise UsageError(f"{self.prefix} needs an array, and no two of the same name")
        first, stop = self.views or (0, 1)
        if self.rows < 1 or not 0 <= first < stop:
            raise UsageError(f"{self.prefix} cannot have {self.rows:,} rows and views {first} to {stop - 1}")
        if self.shard_count > _MAX_SHARDS:
            raise UsageError(f"{self.prefix} would have more than {_MAX_SHARDS:,} shards", hint="make several caches")

    @property
    def prefix(self) -> str:
        """Where the part's objects are."""
        return f"{self.split}/{self.name}"

    @property
    def recipe_id(self) -> str:
        """SHA-256 of the identity: the same whenever the part should be the same."""
        return hash_json(self.identity)

    @property
    def rows_per_shard(self) -> int:
        """Rows of every shard but the last."""
        return rows_per_shard(self.rows, self.arrays)

    @property
    def shard_count(self) -> int:
        """Number of shards over all views; at least one."""
        first, stop = self.views or (0, 1)
        return (stop - first) * math.ceil(self.rows / self.rows_per_shard)

    def shard(self, view: int, index: int) -> Shard:
        """One shard by its view and number. Raises UsageError."""
        first, stop = self.views or (0, 1)
        start = index * self.rows_per_shard
        if not first <= view < stop or not 0 <= start < self.rows:
            raise UsageError(f"{self.prefix} has no shard {index} of view {view}")
        return Shard(view, index, start, min(start + self.rows_per_shard, self.rows))

    def shards(self) -> list[Shard]:
        """Every shard of the part, view by view; there is at least one."""
        step = self.rows_per_shard
        starts = range(0, self.rows, step)
        views = range(*self.views) if self.views else range(1)
        return [Shard(v, n, start, min(start + step, self.rows)) for v in views for n, start in enumerate(starts)]

    def array(self, name: str) -> ArraySpec:
        """The array of that name. Raises UsageError."""
        found = next((array for array in self.arrays if array.name == name), None)
        if found is None:
            raise UsageError(f"{self.prefix} has no array {name!r}")
        return found

    def to_json(self) -> Json:
        """The content of part.json."""
        return {
            "format": FORMAT,
            "name": self.name,
            "kind": self.kind,
            "split": self.split,
            "rows": self.rows,
            "rows_per_shard": self.rows_per_shard,
            "views": list(self.views) if self.views else None,
            "recipe_id": self.recipe_id,
            "identity": self.identity,
            "arrays": [_array_to_json(array, self.rows_per_shard) for array in self.arrays],
            "outputs": [output.to_json() for output in self.outputs],
            "assets": {name: asset.to_json() for name, asset in self.assets.items()},
            "reasons": {str(int(reason)): reason.text for reason in Reason},
            "facts": self.facts,
            "provenance": self.provenance,
        }


def check_name(name: str, kind: str) -> str:
    """A name that may become a directory of a cache. Raises UsageError for any other."""
    if not _NAME.fullmatch(name) or len(name) > 64 or name in RESERVED_NAMES:
        hint = (
            "names are lower-case letters, digits, '-', '_' and inner dots, begin with a letter, at most 64 characters"
        )
        raise UsageError(f"{name!r} cannot be the name of a {kind}", hint=hint)
    return name


def rows_per_shard(rows: int, arrays: Iterable[ArraySpec]) -> int:
    """The largest power of two whose widest shard is at most 64 MiB, and at most max(1024, rows / 64)."""
    widest = max((array.row_bytes for array in arrays), default=1)
    most = min(max(1024, rows // 64), max(_MAX_SHARD_BYTES // widest, 1))
    return 1 << (most.bit_length() - 1)


def inner_rows(array: ArraySpec, shard_rows: int) -> int:
    """Rows of an inner chunk: the power of two nearest below 512 KiB, at most a shard."""
    most = max(_INNER_BYTES // array.row_bytes, 1)
    return min(1 << (most.bit_length() - 1), shard_rows)


def shard_bytes(array: ArraySpec, shard_rows: int, chunks: int) -> int:
    """Size of a shard file that holds so many inner chunks: their rows, an index of every possible one, its crc32c."""
    inner = inner_rows(array, shard_rows)
    return chunks * inner * array.row_bytes + shard_rows // inner * 16 + 4


def shard_key(part: PartSpec, array: ArraySpec, shard: Shard) -> str:
    """The object that holds a shard of an array, named as Zarr's default chunk keys are."""
    view = [shard.view - part.views[0]] if part.views else []
    trailing = [0] * len(array.shape)
    return f"{part.prefix}/{array.name}/c/" + "/".join(map(str, [*view, shard.index, *trailing]))


def array_metadata(part: PartSpec, array: ArraySpec) -> Json:
    """The array's zarr.json: sharded, uncompressed, little-endian, the index at the end with crc32c."""
    per_row, step = max(array.longest, 1), part.rows_per_shard
    # a ragged array has room for the longest row everywhere: its sample axis is made of whole shards of elements
    samples = math.ceil(part.rows / step) * step * per_row if array.longest else part.rows
    view = [part.views[1] - part.views[0]] if part.views else []
    one = [1] if part.views else []
    dtype = np.dtype(array.dtype)
    names = array.dimensions or [None] * len(array.shape)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*view, samples, *array.shape],
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*one, step * per_row, *array.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if math.isnan(array.fill) else array.fill,
        "codecs": [_sharding([*one, inner_rows(array, step) * per_row, *array.shape], dtype)],
        "attributes": {},
        "dimension_names": [*(["view"] if view else []), "element" if array.longest else "sample", *names],
    }


def _sharding(inner_shape: list[int], dtype: "np.dtype[Any]") -> Json:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": inner_shape,
            "codecs": [little if dtype.itemsize > 1 else {"name": "bytes"}],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        },
    }


def _array_to_json(array: ArraySpec, shard_rows: int) -> Json:
    return {
        "name": array.name,
        "dtype": array.dtype,
        "shape": list(array.shape),
        "dimensions": list(array.dimensions),
        "longest": array.longest,
        "inner_rows": inner_rows(array, shard_rows),
    }


def check_scale(output: EncodedOutput) -> None:
    """Raises UsageError unless there is a scale for each column exactly where the encoding wants them."""
    needed = math.prod(output.output.shape) if output.encoding == "int8:column" else 0
    if len(output.scale) != needed:
        name, found = output.output.name, len(output.scale)
        hint = "measured_part takes the scales of int8:column from a sample of rows"
        raise UsageError(f"{output.encoding} of {name} needs {needed:,} scales, and has {found:,}", hint=hint)


def _check_array(array: ArraySpec) -> None:
    check_name(array.name, "array")
    if len(array.shape) > MOST_AXES:
        raise UsageError(f"{array.name} has more than {MOST_AXES} trailing axes")
    if len(array.dimensions) not in (0, len(array.shape)):
        raise UsageError(f"{array.name} has {len(array.shape)} trailing axes, not {len(array.dimensions)}")
    if not 1 <= array.row_bytes <= _MAX_ROW_BYTES:
        raise UsageError(f"a row of {array.name} cannot have {array.row_bytes:,} bytes")
