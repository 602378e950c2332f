"""What an extraction has still to write: bytes of every array, files, and whether the disk has room for them."""

import contextlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.errors import DiskFullError
from featurecache.sources import Source
from pipelines.fill import SplitPlan

if TYPE_CHECKING:
    from featurecache.store.layout import PartSpec, Shard
    from featurecache.store.objects import LocalObjects

__all__ = ["Need", "check_space", "existing_folder", "need_of"]


_COUNTED_TEXTS = 64
"""Texts that tell how many tokens one has."""


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


def need_of(objects: "LocalObjects", plans: Sequence[SplitPlan]) -> Need:
    """What all parts of the plans still need; exact if nothing else is writing there, but for the tokens of texts.

    Raises UsageError if something else than a cache stands there, IdentityError for a cache of something else.
    """
    from featurecache.extract import assets_of
    from featurecache.rows import rows_identity, rows_part
    from featurecache.store.commit import pending_shards
    from featurecache.store.seals import latest_seal
    from featurecache.store.writer import find_part, is_cache, matching_part

    is_cache(objects)
    need = Need(files=sum(not objects.exists(key) for key in ("cache.json", "zarr.json")))
    for plan in plans:
        identity = rows_identity(plan.source)
        listed = matching_part(objects, plan.name, "rows", identity) or rows_part(plan.source, plan.name, identity)
        need.files += not objects.exists(f"{plan.name}/zarr.json")
        _add(need, objects, listed, plan, {})
        tokenizer = assets_of(plan.network_input) if plan.network_input else {}
        others = [(plan.inputs, tokenizer)] if plan.inputs else []
        lessons = [(lesson.part, assets_of(lesson.network.input)) for lesson in plan.lessons]
        for part, assets in [*others, *((part, {}) for part in plan.views), *lessons]:
            standing = find_part(objects, plan.name, part.kind, part.identity) or part
            _add(need, objects, standing, plan, assets)
            if part.kind == "teacher":
                missing = sum(shard.rows for shard in pending_shards(objects, standing))
                need.rows[plan.name] = need.rows.get(plan.name, 0) + missing
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


def _add(need: Need, objects: "LocalObjects", part: "PartSpec", plan: SplitPlan, assets: Mapping[str, bytes]) -> None:
    from featurecache.store.commit import pending_shards

    if not objects.exists(f"{part.prefix}/part.json"):
        need.files += 2 + len(part.arrays) + len(assets)  # part.json, and zarr.json of the part and of each array
        need.assets += sum(map(len, assets.values()))
    sizes = dict.fromkeys((array.name for array in part.arrays), 0)
    has_tokens = part.kind != "rows" and any(array.longest for array in part.arrays)
    tokens = _tokens_each(plan) if has_tokens else 0.0
    for shard in pending_shards(objects, part):
        need.files += 1 + len(part.arrays)
        for name, size in _shard_sizes(part, shard, plan.source, tokens).items():
            sizes[name] += size
    need.arrays[part.prefix] = sizes


def _shard_sizes(part: "PartSpec", shard: "Shard", source: Source, tokens: float) -> dict[str, int]:
    """Bytes of the file of each array, for so many tokens a text."""
    from featurecache.store.layout import inner_rows, shard_bytes

    step, sizes = part.rows_per_shard, {}
    for array in part.arrays:
        inner = inner_rows(array, step)
        chunks = math.ceil(shard.rows / inner)
        if array.longest:  # rows of all lengths, end to end
            keys = source.keys[shard.start : shard.stop] if part.kind == "rows" else ()
            elements = sum(len(key.encode()) for key in keys) or shard.rows * tokens
            chunks = min(max(math.ceil(elements / (inner * array.longest)), 1), step // inner)
        sizes[array.name] = shard_bytes(array, step, chunks)
    return sizes


def _tokens_each(plan: SplitPlan) -> float:
    """How many tokens a text has, the mean of a few."""
    from featurecache.errors import BadSampleError
    from featurecache.inputs import TextInput
    from featurecache.sources.decode import decode

    network_input = plan.network_input
    assert isinstance(network_input, TextInput)
    lengths = [0]
    for row in range(0, len(plan.source), max(len(plan.source) // _COUNTED_TEXTS, 1)):
        with contextlib.suppress(BadSampleError):
            lengths.append(len(network_input.read(decode(plan.source[row], "text"))))
    return sum(lengths) / max(len(lengths) - 1, 1)
