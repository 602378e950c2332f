"""What an extraction would take: bytes, files and hours, from the plan and a few timed batches. It writes nothing."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.sources import Source
from featurecache.types import Json
from pipelines.describe import output_text
from pipelines.events import Message, Run
from pipelines.space import Need, check_space, existing_folder, need_of

if TYPE_CHECKING:
    from featurecache.background import Rows
    from featurecache.extract import Encoded
    from featurecache.loader import Loaded
    from featurecache.store.layout import PartSpec
    from featurecache.store.objects import LocalObjects
    from featurecache.store.writer import CacheWriter
    from featurecache.teachers import Teacher

__all__ = ["estimate"]

_WARM_UP, _TIMED, _SECONDS = 2, 20, 10.0
_KEPT = 4
"""Decoded batches that the teacher is timed on: enough that they differ, few enough for memory."""
_WRITING_SECONDS = 2.0

_ADVICE = {
    "decoding": "more --workers decode faster, and so do smaller images",
    "the teacher": "try a larger --batch-size, --amp bfloat16, or a faster --device",
    "writing": "put --out on a faster disk, or choose a smaller encoding such as int8 or topk:64",
}


def estimate(
    network: "Teacher",
    sources: Mapping[str, Source],
    parts: "Mapping[str, PartSpec]",
    objects: "LocalObjects",
    loading: Callable[[Source], dict[str, Any]],
) -> Run[Json]:
    """Facts about the extraction that these arguments would begin or go on with; `loading` as of `extract`.

    Only what is missing is counted. Raises what the extraction itself would refuse, and DiskFullError if what is
    missing is larger than what is free.
    """
    from featurecache.extract import assets_of

    parts = yield from _decided(network, sources, parts, objects, loading)
    need = need_of(objects, sources, parts, assets_of(network))
    facts = {
        "cache": str(objects.root),
        "teacher": network.name,
        "splits": {split: _split_facts(need, part) for split, part in parts.items()},
        "bytes_by_array": need.arrays,
        "missing": sum(need.rows.values()),
        "files": need.files,
        "bytes": need.bytes,
        "free": check_space(need, objects),
    }
    if not facts["missing"]:
        return {**facts, "hours": 0.0}
    split = max(need.rows, key=lambda name: need.rows[name])
    options = loading(sources[split])
    rates = yield from _rates(network, sources[split], parts[split], objects, options)
    return {**facts, **_verdict(rates, sum(need.rows.values()), ahead=options["workers"] > 0)}


def _decided(
    network: "Teacher",
    sources: Mapping[str, Source],
    parts: "Mapping[str, PartSpec]",
    objects: "LocalObjects",
    loading: Callable[[Source], dict[str, Any]],
) -> "Run[dict[str, PartSpec]]":
    """The parts as they stand or will be made: what "int8" is, and its scales, need a sample of rows."""
    from featurecache.measure import measured_part
    from featurecache.store.writer import matching_part

    decided = {}
    for split, part in parts.items():
        standing = matching_part(objects, split, "teacher", part.identity)
        if standing is None and any(item.encoding in ("int8", "int8:column") for item in part.outputs):
            yield Message(f"choosing encodings on a sample of {split}")
            standing = measured_part(network, sources[split], part, **loading(sources[split]))
        decided[split] = standing or part
    return decided


def _split_facts(need: Need, part: "PartSpec") -> Json:
    return {
        "rows": part.rows,
        "missing": need.rows[part.split],
        "invalid": "not known before the teacher has run",
        "outputs": {item.output.name: output_text(part, item) for item in part.outputs},
    }


def _rates(
    network: "Teacher", source: Source, part: "PartSpec", objects: "LocalObjects", options: dict[str, Any]
) -> Run[dict[str, float]]:
    """Rows per second of decoding, the teacher and writing, each alone."""
    from featurecache.extract import Encoded, assets_of
    from featurecache.forward import Forward, rows_at_once
    from featurecache.store.objects import LocalObjects
    from featurecache.store.writer import CacheWriter

    batch_rows = rows_at_once(source.modality, options["batch_size"])
    batches = _batches(objects, part, batch_rows)
    loaded: list[Loaded] = []
    yield Message(f"timing {len(batches)} batches of {len(batches[0])} rows")
    decoding = _rate(_decode(network, source, batches, options["workers"], loaded))
    forward = Forward(
        network,
        batch_size=options["batch_size"],
        device=options["device"],
        precision=part.identity["precision"],
    )
    with _scratch_folder(objects.root) as folder:
        writer = CacheWriter(LocalObjects(folder), part, assets=assets_of(network))
        encoded: list[Rows] = []
        teaching = _rate(_teach(Encoded(forward, writer), loaded, encoded))
        writing = _writing_rate(writer, encoded)
    return {"decoding": decoding, "the teacher": teaching, "writing": writing}


def _batches(objects: "LocalObjects", part: "PartSpec", batch_rows: int) -> list[np.ndarray]:
    """The first batches of row numbers that an extraction would do; the same again where there are too few."""
    from featurecache.store.commit import pending_shards

    each = (
        np.arange(start, min(start + batch_rows, shard.stop))
        for shard in pending_shards(objects, part)
        for start in range(shard.start, shard.stop, batch_rows)
    )
    first = list(itertools.islice(each, _WARM_UP + _TIMED))
    return list(itertools.islice(itertools.cycle(first), _WARM_UP + _TIMED))


def _decode(
    network: "Teacher", source: Source, batches: list[np.ndarray], workers: int, loaded: "list[Loaded]"
) -> Iterator[int]:
    """Rows of each batch that was decoded; the first few batches are kept in `loaded`."""
    from featurecache.loader import load

    for batch in load(source, network.input, batches, workers=workers, hash_inputs=True):
        if len(loaded) < _KEPT:
            loaded.append(batch)
        yield len(batch.rows)


def _teach(encoded_by: "Encoded", loaded: "list[Loaded]", encoded: "list[Rows]") -> Iterator[int]:
    """Rows of each batch that went through the teacher and its encodings; the first few are kept in `encoded`."""
    for batch in itertools.islice(itertools.cycle(loaded), _WARM_UP + _TIMED):
        rows = encoded_by(batch)()
        if len(encoded) < len(loaded):
            encoded.append(rows)
        yield len(batch.rows)


def _rate(steps: Iterable[int]) -> float:
    """Rows per second of what says after each step how many rows it was; without the first steps, and not for long."""
    began = now = time.monotonic()
    rows = 0
    for number, count in enumerate(steps):
        now = time.monotonic()
        if number < _WARM_UP:
            began = now
            continue
        rows += count
        if now - began > _SECONDS:
            break
    return rows / max(now - began, 1e-9)


def _writing_rate(writer: "CacheWriter", encoded: "list[Rows]") -> float:
    """Rows per second of whole shards, since much of the time goes to making them durable."""
    rows = itertools.cycle(encoded)
    began, done = time.monotonic(), 0
    for shard in writer.part.shards():
        open_shard, lacking = writer.open(shard), shard.rows
        while lacking:
            batch = {name: values[:lacking] for name, values in next(rows).items()}
            open_shard.append(batch)
            lacking -= len(batch["valid"])
        open_shard.commit()
        done += shard.rows
        if time.monotonic() - began > _WRITING_SECONDS:
            break
    return done / max(time.monotonic() - began, 1e-9)


def _scratch_folder(out: Path) -> "tempfile.TemporaryDirectory[str]":
    """On the disk where the cache will be, if a folder can be made there."""
    name = ".featurecache-dry-run-"
    try:
        return tempfile.TemporaryDirectory(prefix=name, dir=existing_folder(out.absolute().parent))
    except OSError:
        return tempfile.TemporaryDirectory(prefix=name)


def _verdict(rates: Mapping[str, float], rows: int, *, ahead: bool) -> Json:
    """Hours for so many rows, and what they are spent on; `ahead` where other processes decode meanwhile."""
    seconds = {name: 1 / rate for name, rate in rates.items()}
    together = seconds["the teacher"] + (0 if ahead else seconds["decoding"])
    limit = max(seconds, key=lambda name: seconds[name])
    return {
        "rows_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "limit": limit,
        "advice": _ADVICE[limit],
        "hours": rows * max(together, *seconds.values()) / 3600,
    }
