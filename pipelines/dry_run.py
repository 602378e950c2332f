"""What an extraction would take: bytes, files and hours, from the plan and a few timed batches. It writes nothing."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurecache.sources import Source
from featurecache.types import Json
from pipelines.describe import output_text
from pipelines.events import Message, Run
from pipelines.fill import Lesson, SplitPlan
from pipelines.space import Need, check_space, existing_folder, need_of

if TYPE_CHECKING:
    from featurecache.background import Rows
    from featurecache.extract import Encoded
    from featurecache.frames import Frames
    from featurecache.loader import Loaded
    from featurecache.store.layout import PartSpec
    from featurecache.store.objects import LocalObjects
    from featurecache.store.writer import CacheWriter
    from featurecache.teachers.base import Described

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
    plans: Sequence[SplitPlan], objects: "LocalObjects", options: Callable[[Source], dict[str, Any]]
) -> Run[Json]:
    """Facts about what these plans would begin or go on with; `options` are those of `extract` for a source.

    Only what is missing is counted. Raises DiskFullError if it is larger than what is free.
    """
    plans = yield from _decided(plans, objects, options)
    need = need_of(objects, plans)
    facts = {
        "cache": str(objects.root),
        "teacher": ", ".join(dict.fromkeys(lesson.network.name for plan in plans for lesson in plan.lessons)),
        "splits": {plan.name: _split_facts(need, plan) for plan in plans if plan.lessons},
        "bytes_by_array": need.arrays,
        "missing": sum(need.rows.values()),
        "files": need.files,
        "bytes": need.bytes,
        "free": check_space(need, objects),
    }
    if not facts["missing"]:
        return {**facts, "hours": 0.0}
    largest = max(plans, key=lambda plan: need.rows.get(plan.name, 0))
    rates = yield from _rates(largest.source, largest.lessons[0], objects, options(largest.source))
    chosen = options(largest.source)
    return {**facts, **_verdict(rates, sum(need.rows.values()), ahead=chosen["workers"] > 0)}


def _decided(
    plans: Sequence[SplitPlan], objects: "LocalObjects", options: Callable[[Source], dict[str, Any]]
) -> Run[list[SplitPlan]]:
    """The plans with parts as they stand or will be made: what "int8" is, and its scales, need a sample of rows.

    They are taken from the plain view here, since no view is drawn yet.
    """
    from featurecache.measure import measured_part
    from featurecache.store.writer import find_part

    decided = []
    for plan in plans:
        lessons = []
        for lesson in plan.lessons:
            standing = find_part(objects, plan.name, "teacher", lesson.part.identity)
            is_open = any(item.encoding in ("int8", "int8:column") for item in lesson.part.outputs)
            if standing is None and is_open and not lesson.is_measured:
                yield Message(f"choosing encodings on a sample of {plan.name}")
                standing = measured_part(lesson.network, plan.source, lesson.part, **options(plan.source))
            lessons.append(replace(lesson, part=standing or lesson.part))
        decided.append(replace(plan, lessons=lessons))
    return decided


def _split_facts(need: Need, plan: SplitPlan) -> Json:
    parts = [lesson.part for lesson in plan.lessons]
    return {
        "rows": len(plan.source),
        "missing": need.rows[plan.name],
        "invalid": "not known before the teacher has run",
        "outputs": {item.output.name: output_text(part, item) for part in parts for item in part.outputs},
    }


def _rates(source: Source, lesson: Lesson, objects: "LocalObjects", options: dict[str, Any]) -> Run[dict[str, float]]:
    """Rows per second of decoding, the teacher and writing, each alone; a row in several views is several."""
    from featurecache.extract import Encoded, assets_of
    from featurecache.forward import forward_of, rows_at_once
    from featurecache.store.objects import LocalObjects
    from featurecache.store.writer import CacheWriter

    network, part = lesson.network, lesson.part
    batches = _batches(objects, part, rows_at_once(source.modality, options["batch_size"]))
    loaded: list[Loaded] = []
    yield Message(f"timing {len(batches)} batches of {len(batches[0])} rows")
    decoding = _rate(_decode(network, source, batches, options["workers"], loaded))
    forward = forward_of(network, part, batch_size=options["batch_size"], device=options["device"])
    with _scratch_folder(objects.root) as folder:
        writer = CacheWriter(LocalObjects(folder), part, assets=assets_of(network.input))
        encoded: list[Rows] = []
        teaching = _rate(_teach(Encoded(forward, writer), loaded, encoded))
        writing = _writing_rate(writer, encoded)
    return {"decoding": decoding, "the teacher": teaching, "writing": writing}


def _batches(objects: "LocalObjects", part: "PartSpec", batch_frames: int) -> "list[Frames]":
    """The first batches that an extraction would do, the same again where there are too few.

    Random views are not drawn yet: the plain one stands for each, which takes as long to make, but for its colours.
    """
    from featurecache.extract import VIEWS_AT_ONCE
    from featurecache.frames import Frames
    from featurecache.store.commit import pending_groups

    each = (
        Frames.of(np.arange(start, min(start + step, group[0].stop)), np.zeros((rows, len(group), 0), np.float32))
        for group in pending_groups(objects, part, VIEWS_AT_ONCE)
        for step in [max(batch_frames // len(group), 1)]
        for start in range(group[0].start, group[0].stop, step)
        for rows in [min(step, group[0].stop - start)]
    )
    first = list(itertools.islice(each, _WARM_UP + _TIMED))
    return list(itertools.islice(itertools.cycle(first), _WARM_UP + _TIMED))


def _decode(
    network: "Described", source: Source, batches: "list[Frames]", workers: int, loaded: "list[Loaded]"
) -> Iterator[int]:
    """Rows of each batch that was decoded; the first few batches are kept in `loaded`."""
    from featurecache.loader import load

    for batch in load(source, network.input, batches, workers=workers, hash_inputs=True):
        if len(loaded) < _KEPT:
            loaded.append(batch)
        yield len(batch.frames)


def _teach(encoded_by: "Encoded", loaded: "list[Loaded]", encoded: "list[Rows]") -> Iterator[int]:
    """Rows of each batch that went through the teacher and its encodings; the first few are kept in `encoded`."""
    for batch in itertools.islice(itertools.cycle(loaded), _WARM_UP + _TIMED):
        rows = encoded_by(batch)()
        if len(encoded) < len(loaded):
            encoded += rows
        yield len(batch.frames)


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
    from featurecache.background import first_rows

    rows = itertools.cycle(encoded)
    began, done = time.monotonic(), 0
    for shard in writer.part.shards():
        open_shard, lacking = writer.open(shard), shard.rows
        while lacking:
            batch = first_rows(writer.part, next(rows), lacking)
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
