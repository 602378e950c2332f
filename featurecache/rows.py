"""The first part of every split: which samples there are. It is written before any teacher runs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from featurecache.errors import IdentityError, IncompleteError
from featurecache.fingerprint import content_hash, key_hash
from featurecache.sources.base import Source
from featurecache.sources.decode import image_size
from featurecache.store.layout import PartSpec, Shard
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.writer import CacheWriter, matching_part
from featurecache.types import ArraySpec, Json

__all__ = ["IMAGE_SIZE", "ListedContents", "list_rows", "rows_identity", "rows_part"]

IMAGE_SIZE = ArraySpec("size", "int32", (2,), ("axis",))
"""Height and width of each image in pixels, as its header says; 0 where it says nothing."""


def rows_identity(source: Source) -> Json:
    """What decides whether two splits hold the same samples: keys and byte sizes, in order."""
    return {"kind": "rows", "fingerprint": source.fingerprint(), "rows": len(source)}


def list_rows(source: Source, objects: LocalObjects, split: str, *, origin: Json = None) -> Iterator[Shard]:
    """Write the part "rows" of a split, yielding each shard that it commits.

    `origin` says where the samples are, if that is not where cache.json says: a hint. Every sample's bytes are read
    once, for their hash. Raises IdentityError if the split holds other samples.
    """
    identity = rows_identity(source)
    planned = rows_part(source, split, identity)
    planned = replace(planned, provenance={"source": origin}) if origin else planned
    part = matching_part(objects, split, "rows", identity) or planned
    writer = CacheWriter(objects, part)
    for shard in writer.pending():
        writer.write(shard, _rows(source, part, shard))
        yield shard


class ListedContents:
    """The content hash of each sample when it was listed, read as it is asked for."""

    def __init__(self, source: Source, objects: LocalObjects, split: str) -> None:
        """Raises IncompleteError if the split is not listed, IdentityError if it holds other samples."""
        part = matching_part(objects, split, "rows", rows_identity(source))
        if part is None:
            raise IncompleteError(f"the rows of split {split!r} are not listed yet", hint="list_rows does so")
        self._reader = PartReader(objects, part)
        self._keys = source.keys

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """uint64 (rows,). Raises IncompleteError if some are not listed yet."""
        return self._reader.take(self._reader.part.array("content_hash"), rows)

    def check(self, rows: np.ndarray, found: np.ndarray) -> None:
        """Raises IdentityError unless the samples of rows (int64) still have the content that was listed.

        `found` is uint64 (rows,).
        """
        changed = np.flatnonzero(found != self(rows))
        if changed.size:
            key = self._keys[int(rows[changed[0]])]
            hint = "the data set was changed since this cache was begun: start a new one with another --out"
            raise IdentityError(f"the bytes of sample {key!r} are not those the cache lists", hint=hint)


def rows_part(source: Source, split: str, identity: Json) -> PartSpec:
    """The part "rows" of a split, as it will be."""
    longest = max(len(key.encode()) for key in source.keys)
    return PartSpec(
        name="rows",
        kind="rows",
        split=split,
        rows=len(source),
        identity=identity,
        arrays=(
            ArraySpec("key_hash", "uint8", (16,), ("byte",)),
            ArraySpec("key_text", "uint8", longest=longest),
            ArraySpec("key_offsets", "int64", (2,), ("bound",)),
            ArraySpec("label", "int32"),
            ArraySpec("content_hash", "uint64"),
            *([IMAGE_SIZE] if source.modality == "image" else []),
        ),
        facts={"modality": source.modality, "class_names": list(source.class_names)},
    )


def _rows(source: Source, part: PartSpec, shard: Shard) -> dict[str, np.ndarray]:
    keys = source.keys[shard.start : shard.stop]
    contents, sizes = [], []
    for sample in source.iter(shard.start, shard.stop):
        contents.append(content_hash(sample.encoded))
        sizes.append(image_size(sample.encoded) if IMAGE_SIZE in part.arrays else (0, 0))
    first = shard.index * part.rows_per_shard * part.array("key_text").longest
    return {
        "key_hash": np.frombuffer(b"".join(map(key_hash, keys)), np.uint8).reshape(-1, 16),
        "key_text": np.frombuffer("".join(keys).encode(), np.uint8),
        "key_offsets": _offsets(keys) + first,
        "label": source.labels[shard.start : shard.stop],
        "content_hash": np.array(contents, np.uint64),
        **({"size": np.array(sizes, np.int32)} if IMAGE_SIZE in part.arrays else {}),
    }


def _offsets(keys: Sequence[str]) -> np.ndarray:
    """int64 (keys, 2): first byte and one past the last of each key, laid end to end."""
    stops = np.cumsum([len(key.encode()) for key in keys], dtype=np.int64)
    return np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)
