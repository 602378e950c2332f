"""`fc extend`: more views, outputs, teachers, splits or inputs for a cache that stands; no byte of it is changed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import SourceError, UsageError
from featurecache.sources import Source, location
from featurecache.types import Json
from pipelines.events import Message, Run
from pipelines.fill import EVALUATION_SPLITS, fill, loading
from pipelines.growth import Wish, plan_growth
from pipelines.space import check_space, need_of
from pipelines.standing import Teachers

if TYPE_CHECKING:
    from featurecache.store.reader import Cache

__all__ = ["extend_cache"]


def extend_cache(
    *,
    cache: Path | str = "./cache",
    views: str | None = None,
    augment: str | None = None,
    seed: int | None = None,
    outputs: Sequence[str] | None = None,
    encode: Mapping[str, str] | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    teacher: str | None = None,
    splits: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
    store_inputs: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    **teacher_options: Any,
) -> Run[Json]:
    """Add parts to a sealed cache and seal it again; older seals stay as they are, and as true as they were.

    `views` is "+8", so many more than the seal covers, or "16", so many in all, drawn as the first ones were. `outputs`
    are further ones of a teacher in all its views; a `teacher` that is not in the cache is added in all of them; splits
    that are not there get what the first one has, in the plain view. Without `teacher`, those of the cache are found by
    what it says of them. Run again after an interruption, it goes on. Returns cache, digest, the parts that were added,
    and seconds. Raises UsageError, IdentityError for other data or another teacher than the cache's, DiskFullError.
    """
    from featurecache.store.seals import seal
    from pipelines.load import has_outputs, open_sealed

    began = time.monotonic()
    if not any((views, outputs, teacher, splits, store_inputs)):
        hint = "say what to add: --views +8, --outputs, --teacher, --split or --store-inputs"
        raise UsageError("nothing to add was named", hint=hint)
    opened, before = open_sealed(str(cache))
    only_views = views is not None and not (outputs or teacher or store_inputs)
    chosen = splits or [name for name in opened.splits if not only_views or name not in EVALUATION_SPLITS]
    if not chosen:
        message = f"{', '.join(opened.splits)} have the plain view alone"
        raise UsageError(message, hint="name those that shall have more with --split")
    wish = Wish(
        views,
        augment,
        seed,
        outputs,
        encode or {},
        temperatures,
        store_inputs,
        precision,
        named=bool(splits),
        is_inputs_only=not (views or outputs or teacher),
    )
    if not views and (augment or seed is not None):
        hint = "ask for random ones with --views 8"
        raise UsageError("--augment and --seed make no difference without further views", hint=hint)
    if wish.is_inputs_only and not store_inputs and (there := [name for name in chosen if has_outputs(opened, name)]):
        hint = "say what to add to it: --views +8, --outputs, --teacher or --store-inputs"
        raise UsageError(f"the cache has {', '.join(there)} already", hint=hint)
    teachers = Teachers(opened, teacher, teacher_options)
    plans = [plan_growth(opened, split, _source(opened, split, data), teachers, wish) for split in chosen]
    if data:
        plans = [replace(plan, origin={"data": location(data)}) for plan in plans]
    for network in teachers.loaded:
        yield Message(f"teacher {network.name}")
    options = partial(loading, device=device, workers=workers, batch_size=batch_size)
    check_space(need_of(opened.objects, plans), opened.objects)
    yield from fill(opened.objects, plans, options)
    sealed = seal(opened.objects)
    if sealed.digest == before:
        yield Message("all of that was there already: nothing was added")
    return {
        "cache": str(cache),
        "digest": sealed.digest,
        "added": [prefix for prefix in sealed.parts if opened.seal and prefix not in opened.seal.parts],
        "seconds": round(time.monotonic() - began, 1),
    }


def _source(cache: "Cache", split: str, data: Sequence[str] | None) -> Source:
    """The samples of a split, or of one that is to be added. Raises SourceError, UsageError."""
    from featurecache.sources import open_data
    from pipelines.load import open_samples

    if split in cache.splits:
        return open_samples(cache, split, data, as_extracted=True)
    if data:
        return open_data(list(data), splits=[split])[split]
    try:
        return open_samples(cache, split)
    except SourceError as error:
        message = f"{split} is no split of the cache, nor of the data it was made from"
        raise SourceError(message, hint=f"say what its samples are with --data {split}=DATA") from error
