"""`fc extract`: a teacher and a data set in, a sealed cache out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.sources import Source, is_remote, location, open_data
from featurecache.types import Json
from pipelines.describe import count_invalid
from pipelines.dry_run import estimate
from pipelines.events import Advance, Message, Run, default_device, default_workers
from pipelines.space import check_space, need_of

if TYPE_CHECKING:
    from featurecache.extract import Progress
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
    text_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    **teacher_options: Any,
) -> Run[Json]:
    """Run the teacher once over every split and seal the cache; run again after an interruption, it goes on.

    `teacher_options` are those of `load_teacher` (weights, img_size, crop_pct, max_length, pool, model_kwargs,
    trust_remote_code). Returns a summary: cache, digest, teacher, seconds, and for each split its rows and the invalid
    ones by reason; with `dry_run`, which writes nothing, the facts of `estimate`. Raises UsageError, IdentityError if
    the cache was made from something else, DiskFullError, also before anything is written if there is no room.
    """
    from featurecache.extract import assets_of, extract
    from featurecache.measure import measured_part
    from featurecache.plan import plan_part
    from featurecache.store.objects import LocalObjects
    from featurecache.store.seals import seal
    from featurecache.store.writer import create_cache, matching_part
    from featurecache.teachers import load_teacher, resolve_name

    began = time.monotonic()
    columns: dict[str, Any] = {"text_column": text_column, "label_column": label_column, "id_column": id_column}
    columns = {name: column for name, column in {**columns, "image_column": image_column}.items() if column}
    if fetched := [text for text in location(data) if is_remote(text)]:
        yield Message(f"opening {', '.join(fetched)}: what is not here yet is fetched first")
    sources = open_data(data, splits=splits, limit=limit, **columns)
    weights = f", weights {given}" if (given := teacher_options.get("weights")) else ""
    yield Message(f"teacher {_resolved(teacher, resolve_name(teacher))}{weights}")
    network = load_teacher(teacher, modality=next(iter(sources.values())).modality, **teacher_options)
    plan: dict[str, Any] = {"outputs": outputs, "encode": encode, "temperatures": temperatures, "precision": precision}
    parts = {split: plan_part(network, source, split, **plan) for split, source in sources.items()}
    loading = partial(_loading, device=device, workers=workers, batch_size=batch_size)
    objects = LocalObjects(out)
    if dry_run:
        return (yield from estimate(network, sources, parts, objects, loading))
    check_space(need_of(objects, sources, parts, assets_of(network)), objects)
    create_cache(out, source={"data": location(data), "limit": limit, **columns})
    yield from _list(objects, sources, parts)
    for split, source in sources.items():
        part = parts[split]
        if matching_part(objects, split, "teacher", part.identity) is None:
            yield Message(f"measuring what the encodings of {split} cost")
            part = measured_part(network, source, part, **loading(source))
        yield from _followed(extract(network, source, objects, part, **loading(source)), f"extract {split}")
    sealed = seal(objects)
    return {
        "cache": str(out),
        "digest": sealed.digest,
        "teacher": network.name,
        "seconds": round(time.monotonic() - began, 1),
        "splits": {split: _count(objects, parts[split].identity, split) for split in sources},
    }


def _loading(source: Source, *, device: str | None, workers: int | None, batch_size: int) -> dict[str, Any]:
    """Options of `extract` for a split."""
    chosen = device or default_device()
    loaders = default_workers(chosen) if workers is None else workers
    # starting processes for a few samples takes longer than decoding them
    return {"batch_size": batch_size, "workers": loaders if len(source) > 256 else 0, "device": chosen}


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


def _followed(run: "Iterator[Progress]", stage: str) -> Run[None]:
    has_waited = False
    for progress in run:
        if progress.is_waiting and not has_waited:
            has_waited = True
            yield Message("another extraction is at work on the rows that are left: waiting for it")
        facts = {"invalid": sum(progress.invalid.values())} if progress.invalid else {}
        yield Advance(stage, progress.done, progress.total, facts=facts, until_safe=progress.until_safe)


def _resolved(given: str, full: str) -> str:
    return full if given == full else f"{given} -> {full}"


def _count(objects: "LocalObjects", identity: Json, split: str) -> Json:
    from featurecache.store.commit import read_records
    from featurecache.store.writer import matching_part

    part = matching_part(objects, split, "teacher", identity)
    assert part is not None
    invalid = count_invalid(read_records(objects, part).values())
    return {"rows": part.rows, "part": part.prefix, "invalid": invalid}
