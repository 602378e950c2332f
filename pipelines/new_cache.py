"""A cache from the plans of its splits: begun, or gone on with, and sealed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.sources import Source
from featurecache.types import Json
from pipelines.describe import count_invalid
from pipelines.events import Run
from pipelines.fill import SplitPlan, fill
from pipelines.space import check_space, need_of

if TYPE_CHECKING:
    from featurecache.store.objects import LocalObjects

__all__ = ["make_cache", "refuse_others"]


def refuse_others(objects: "LocalObjects", plans: Sequence[SplitPlan]) -> None:
    """Raises IdentityError where something stands that speaks against a plan, UsageError if it is no cache."""
    from featurecache.rows import rows_identity
    from featurecache.store.writer import is_cache, matching_part

    is_cache(objects)
    for plan in plans:
        matching_part(objects, plan.name, "rows", rows_identity(plan.source))
        for lesson in plan.lessons:
            matching_part(objects, plan.name, "teacher", lesson.part.identity)
        for part in plan.views:
            matching_part(objects, plan.name, "views", part.identity)


def make_cache(
    out: Path | str,
    plans: Sequence[SplitPlan],
    options: Callable[[Source], dict[str, Any]],
    *,
    source: Json,
    began: float,
) -> Run[Json]:
    """Write what is missing of every plan, which nothing speaks against, and seal the cache.

    `options` are those of `fill`, `source` is a hint where the data are, `began` what time.monotonic() said when the
    run did. Returns cache, digest, teacher, seconds, and for each split its rows, views, part, and the invalid rows by
    reason. Raises DiskFullError, also before anything is written if there is no room.
    """
    from featurecache.store.objects import LocalObjects
    from featurecache.store.seals import seal
    from featurecache.store.writer import create_cache

    objects = LocalObjects(out)
    check_space(need_of(objects, plans), objects)
    create_cache(out, source=source)
    yield from fill(objects, plans, options)
    sealed = seal(objects)
    return {
        "cache": str(out),
        "digest": sealed.digest,
        "teacher": plans[0].lessons[0].network.name,
        "seconds": round(time.monotonic() - began, 1),
        "splits": {plan.name: _count(objects, plan.lessons[0].part.identity, plan.name) for plan in plans},
    }


def _count(objects: "LocalObjects", identity: Json, split: str) -> Json:
    from featurecache.store.commit import read_records
    from featurecache.store.writer import matching_part

    part = matching_part(objects, split, "teacher", identity)
    assert part is not None
    invalid = count_invalid(read_records(objects, part).values())
    first, stop = part.views or (0, 1)
    return {"rows": part.rows, "views": stop - first, "part": part.prefix, "invalid": invalid}
