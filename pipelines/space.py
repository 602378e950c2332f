"""What an extraction has still to write: bytes of every array, files, and whether the disk has room for them."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.errors import DiskFullError
from featurecache.sources import Source

if TYPE_CHECKING:
    from featurecache.store.layout import PartSpec, Shard
    from featurecache.store.objects import LocalObjects

__all__ = ["Need", "check_space", "existing_folder", "need_of"]


@dataclass(slots=True)
class Need:
    """What is missing of the parts of an extraction."""

    rows: dict[str, int] = field(default_factory=dict)
    """Rows that the teacher has not run on yet, by split."""
    arrays: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bytes of the shard files, by part and array."""
    assets: int = 0
    """Bytes of tokenizers."""
    files: int = 0
    """All files; the JSON ones are small and not counted in bytes."""

    @property
    def bytes(self) -> int:
        """Of all arrays and assets."""
        return sum(size for arrays in self.arrays.values() for size in arrays.values()) + self.assets


def need_of(
    objects: "LocalObjects",
    sources: Mapping[str, Source],
    parts: "Mapping[str, PartSpec]",
    assets: Mapping[str, bytes],
) -> Need:
    """What the rows and the teacher's part of every split still need; exact if nothing else is writing there.

    Raises UsageError if something else than a cache stands there, IdentityError for a cache of something else.
    """
    from featurecache.rows import rows_identity, rows_part
    from featurecache.store.commit import pending_shards
    from featurecache.store.seals import latest_seal
    from featurecache.store.writer import is_cache, matching_part

    is_cache(objects)
    need = Need(files=sum(not objects.exists(key) for key in ("cache.json", "zarr.json")))
    for split, source in sources.items():
        identity = rows_identity(source)
        listed = matching_part(objects, split, "rows", identity) or rows_part(source, split, identity)
        taught = matching_part(objects, split, "teacher", parts[split].identity) or parts[split]
        need.files += not objects.exists(f"{split}/zarr.json")
        _add(need, objects, listed, source, {})
        _add(need, objects, taught, source, assets)
        need.rows[split] = sum(shard.rows for shard in pending_shards(objects, taught))
    if need.files or latest_seal(objects) is None:
        need.files += 1
    return need


def check_space(need: Need, objects: "LocalObjects") -> int:
    """Bytes free where a cache will be. Raises DiskFullError if it needs more than that."""
    free = shutil.disk_usage(existing_folder(objects.root)).free
    if need.bytes > free:
        hint = "choose another --out, fewer --outputs, or a smaller encoding such as int8 or topk:64"
        raise DiskFullError(f"{objects.root} needs {need.bytes:,} bytes more, and {free:,} are free there", hint=hint)
    return free


def existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that there is."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _add(need: Need, objects: "LocalObjects", part: "PartSpec", source: Source, assets: Mapping[str, bytes]) -> None:
    from featurecache.store.commit import pending_shards

    if not objects.exists(f"{part.prefix}/part.json"):
        need.files += 2 + len(part.arrays) + len(assets)  # part.json, and zarr.json of the part and of each array
        need.assets += sum(map(len, assets.values()))
    sizes = dict.fromkeys((array.name for array in part.arrays), 0)
    for shard in pending_shards(objects, part):
        need.files += 1 + len(part.arrays)
        for name, size in _shard_sizes(part, shard, source).items():
            sizes[name] += size
    need.arrays[part.prefix] = sizes


def _shard_sizes(part: "PartSpec", shard: "Shard", source: Source) -> dict[str, int]:
    """Bytes of the file of each array."""
    from featurecache.store.layout import inner_rows, shard_bytes

    step, sizes = part.rows_per_shard, {}
    for array in part.arrays:
        inner = inner_rows(array, step)
        chunks = math.ceil(shard.rows / inner)
        if array.longest:  # the keys, which are end to end
            elements = sum(len(key.encode()) for key in source.keys[shard.start : shard.stop])
            chunks = max(math.ceil(elements / (inner * array.longest)), 1)
        sizes[array.name] = shard_bytes(array, step, chunks)
    return sizes
