"""`fc extract`: a teacher and a data set in, a sealed cache out."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import UsageError
from featurecache.sources import Source, is_remote, location, open_data
from featurecache.types import Json
from pipelines.dry_run import estimate
from pipelines.events import Message, Run
from pipelines.fill import EVALUATION_SPLITS, Lesson, SplitPlan, loading
from pipelines.new_cache import make_cache, refuse_others

if TYPE_CHECKING:
    from featurecache.augment import Augmentation
    from featurecache.teachers import Teacher

__all__ = ["augmentation_of", "extract_cache"]


def extract_cache(
    *,
    teacher: str,
    data: str | Sequence[str],
    out: Path | str = "./cache",
    splits: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    encode: Mapping[str, str] | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    views: int = 1,
    augment: str | None = None,
    seed: int = 0,
    store_inputs: int | None = None,
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

    `views` is the plain view and views - 1 that `augment` draws with `seed`; val and test have the plain view alone.
    `store_inputs` keeps images at so many pixels a side; tokens of texts are always kept. `teacher_options` are those
    of `load_teacher` (weights, img_size, crop_pct, max_length, pool, model_kwargs, trust_remote_code). Returns a
    summary: cache, digest, teacher, seconds, and for each split its rows, views and the invalid ones by reason; with
    `dry_run`, which writes nothing, the facts of `estimate`. Raises UsageError, IdentityError if the cache was made
    from something else, DiskFullError, also before anything is written if there is no room.
    """
    from featurecache.store.objects import LocalObjects
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
    augmentation = augmentation_of(augment, views, network)
    lesson: dict[str, Any] = {
        "outputs": outputs,
        "encode": encode,
        "temperatures": temperatures,
        "precision": precision,
        "augmentation": augmentation,
        "seed": seed,
    }
    plans = [
        _plan(network, source, split, views=1 if split in EVALUATION_SPLITS else views, size=store_inputs, **lesson)
        for split, source in sources.items()
    ]
    if augmentation and all(split in EVALUATION_SPLITS for split in sources):
        raise UsageError(
            f"{', '.join(sources)} have the plain view alone", hint="leave out --views, or name a train=DATA"
        )
    options = partial(loading, device=device, workers=workers, batch_size=batch_size)
    objects = LocalObjects(out)
    refuse_others(objects, plans)
    if dry_run:
        return (yield from estimate(plans, objects, options))
    source = {"data": location(data), "limit": limit, **columns}
    return (yield from make_cache(out, plans, options, source=source, began=began))


def augmentation_of(augment: str | None, views: int, network: "Teacher") -> "Augmentation | None":
    """What draws views 1 and on for a teacher: None where there is view 0 alone. Raises UsageError."""
    from featurecache.augment import find_augmentation
    from featurecache.inputs import TextInput
    from featurecache.masking import mask_of

    if views == 1:
        if augment not in (None, "none"):
            raise UsageError(f"--augment {augment} makes no difference to view 0", hint="ask for more with --views 8")
        return None
    if isinstance(network.input, TextInput):
        if augment not in (None, "mask"):
            raise UsageError(f"--augment {augment} is not for texts", hint="their views are those of --augment mask")
        return mask_of(network.input)
    return find_augmentation(augment or "standard")


def _plan(
    network: "Teacher", source: Source, split: str, *, views: int, size: int | None, seed: int, **lesson: Any
) -> SplitPlan:
    """What one split is to hold."""
    from featurecache.draw import plan_views
    from featurecache.plan import plan_part
    from featurecache.store_inputs import plan_inputs

    if size is not None and source.modality == "text":
        raise UsageError("--store-inputs is for images", hint="the tokens of texts are always stored")
    part = plan_part(network, source, split, views=(0, views), seed=seed, **lesson)
    stores = source.modality == "text" or size is not None
    drawn = [plan_views(source, split, lesson["augmentation"], seed=seed, views=(1, views))] if views > 1 else []
    return SplitPlan(
        split,
        source,
        lessons=[Lesson(network, part)],
        inputs=plan_inputs(source, split, network.input, size=size) if stores else None,
        network_input=network.input,
        views=drawn,
        augmentation=lesson["augmentation"],
    )


def _resolved(given: str, full: str) -> str:
    return full if given == full else f"{given} -> {full}"
