"""`fc extract`: a teacher and a data set in, a sealed cache out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.sources import Source, location, open_data
from featurecache.types import Json
from pipelines.describe import count_invalid
from pipelines.events import Advance, Message, Run, default_device, default_workers

if TYPE_CHECKING:
    from featurecache.store.layout import PartSpec
    from featurecache.store.objects import LocalObjects

__all__ = ["extract_cache"]


def extract_cache(
    *,
    teacher: str,
    data: str | Sequence[str],
    out: Path | str = "./cache",
    splits: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    encode: Mapping[str, str] | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    batch_size: int = 64,
    workers: int | None = None,
    device: str | None = None,
    precision: str = "float32",
    text_column: str = "text",
    label_column: str = "label",
    id_column: str = "id",
    limit: int | None = None,
    **teacher_options: Any,
) -> Run[Json]:
    """Run the teacher once over every split and seal the cache; run again after an interruption, it goes on.

    `teacher_options` are those of `load_teacher` (weights, img_size, crop_pct, max_length, pool, model_kwargs,
    trust_remote_code). Returns a summary: cache, digest, teacher, seconds, and for each split its rows and the invalid
    ones by reason. Raises UsageError, IdentityError if the cache was made from something else, DiskFullError.
    """
    from featurecache.extract import extract, plan_part
    from featurecache.store.commit import seal
    from featurecache.store.writer import create_cache
    from featurecache.teachers import load_teacher, resolve_name

    began = time.monotonic()
    columns = {"text_column": text_column, "label_column": label_column, "id_column": id_column}
    sources = open_data(data, splits=splits, limit=limit, **columns)
    yield Message(f"teacher {_resolved(teacher, resolve_name(teacher))}")
    network = load_teacher(teacher, modality=next(iter(sources.values())).modality, **teacher_options)
    plan: dict[str, Any] = {"outputs": outputs, "encode": encode, "temperatures": temperatures, "precision": precision}
    parts = {split: plan_part(network, source, split, **plan) for split, source in sources.items()}
    objects = create_cache(out, source={"data": location(data), "limit": limit, **columns})
    yield from _list(objects, sources, parts)
    chosen = device or default_device()
    loaders = default_workers(chosen) if workers is None else workers
    for split, source in sources.items():
        # starting processes for a few samples takes longer than decoding them
        loading: dict[str, Any] = {
            "batch_size": batch_size,
            "workers": loaders if len(source) > 256 else 0,
            "device": chosen,
        }
        for progress in extract(network, source, objects, parts[split], **loading):
            facts = {"invalid": sum(progress.invalid.values())} if progress.invalid else {}
            yield Advance(f"extract {split}", progress.done, progress.total, facts=facts)
    sealed = seal(objects)
    return {
        "cache": str(out),
        "digest": sealed.digest,
        "teacher": network.name,
        "seconds": round(time.monotonic() - began, 1),
        "splits": {split: _count(objects, parts[split].identity, split) for split in sources},
    }


def _list(objects: "LocalObjects", sources: Mapping[str, Source], parts: "Mapping[str, PartSpec]") -> Run[None]:
    """Write the rows of every split, once nothing that stands there speaks against it. Raises IdentityError."""
    from featurecache.rows import list_rows, rows_identity
    from featurecache.store.writer import matching_part

    for split, source in sources.items():
        matching_part(objects, split, "rows", rows_identity(source))
        matching_part(objects, split, "teacher", parts[split].identity)
    for split, source in sources.items():
        for shard in list_rows(source, objects, split):
            yield Advance(f"list {split}", shard.stop, len(source))


def _resolved(given: str, full: str) -> str:
    return full if given == full else f"{given} -> {full}"


def _count(objects: "LocalObjects", identity: Json, split: str) -> Json:
    from featurecache.store.commit import read_records
    from featurecache.store.writer import matching_part

    part = matching_part(objects, split, "teacher", identity)
    assert part is not None
    invalid = count_invalid(read_records(objects, part).values())
    return {"rows": part.rows, "part": part.prefix, "invalid": invalid}
