"""The part "views" of a split: the parameters of every random view, drawn once and never again."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from featurecache.augment import Augmentation, ImageAugmentation, TokenAugmentation
from featurecache.errors import IncompleteError, UsageError
from featurecache.rows import IMAGE_SIZE, rows_identity
from featurecache.sources.base import Source
from featurecache.store.layout import FORMAT, PartSpec, Shard
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import find_parts
from featurecache.store.views import StoredViews
from featurecache.store.writer import CacheWriter
from featurecache.types import ArraySpec, Json

__all__ = ["draw_views", "plan_views", "stored_views", "views_identity"]


def views_identity(augmentation: Augmentation | None, *, seed: int, views: tuple[int, int]) -> Json:
    """What decides which views [first, stop) are: for view 0 alone nothing is drawn."""
    drawn = {} if augmentation is None else {"augmentation": augmentation.to_json(), "seed": seed}
    return {"first": views[0], "count": views[1] - views[0], **drawn}


def plan_views(
    source: Source, split: str, augmentation: Augmentation, *, seed: int = 0, views: tuple[int, int]
) -> PartSpec:
    """The part that holds the parameters of views [first, stop), the first of them at least 1.

    Raises UsageError for an augmentation of the other kind of samples.
    """
    if augmentation.modality != source.modality:
        raise UsageError(f"{augmentation.name} changes {augmentation.modality}s, and the data are {source.modality}s")
    first, _ = views
    return PartSpec(
        name="views" if first == 1 else f"views.{first}",
        kind="views",
        split=split,
        rows=len(source),
        views=views,
        identity={
            "format": FORMAT,
            "kind": "views",
            "data": rows_identity(source),
            **views_identity(augmentation, seed=seed, views=views),
        },
        arrays=(ArraySpec("view", "float32", (len(augmentation.parameters),), ("parameter",)),),
        facts={
            "augmentation": augmentation.to_json(),
            "seed": seed,
            "parameters": list(augmentation.parameters),
            "proof": augmentation.proof(),
        },
    )


def draw_views(
    source: Source,
    objects: LocalObjects,
    part: PartSpec,
    augmentation: Augmentation,
    *,
    tokens: Callable[[np.ndarray], Sequence[np.ndarray]] | None = None,
) -> Iterator[Shard]:
    """Write a part that `plan_views` planned, yielding each shard that it commits; the rows are listed before.

    Texts need `tokens`, which gives the ids of rows, int64 (rows,). Raises IdentityError if other views stand there.
    """
    writer = CacheWriter(objects, part)
    seed = part.identity["seed"]
    sizes = None if tokens else _Sizes(source, objects, part.split)
    for shard in writer.pending():
        keys = source.keys[shard.start : shard.stop]
        rows = np.arange(shard.start, shard.stop)
        if isinstance(augmentation, ImageAugmentation) and sizes:
            place = {"first_row": shard.start, "rows": part.rows}
            drawn = augmentation.draw(keys, sizes(rows), view=shard.view, seed=seed, **place)
        else:
            assert isinstance(augmentation, TokenAugmentation) and tokens
            drawn = augmentation.draw(keys, list(tokens(rows)), view=shard.view, seed=seed)
        writer.write(shard, {"view": drawn})
        yield shard


def stored_views(objects: LocalObjects, split: str, *, stop: int = 1) -> StoredViews | None:
    """The views of a split as they are drawn, those below `stop` complete; None if it has none but view 0.

    Raises IncompleteError if some of them are not drawn yet.
    """
    parts = [part for part in find_parts(objects, split) if part.kind == "views"]
    found = StoredViews([PartReader(objects, part) for part in parts]) if parts else None
    if stop > (found.stop if found else 1):
        raise IncompleteError(f"views of split {split!r} are not drawn yet", hint="draw_views does so")
    return found


class _Sizes:
    """Height and width of images, as the rows part has them."""

    def __init__(self, source: Source, objects: LocalObjects, split: str) -> None:
        rows = next(part for part in find_parts(objects, split) if part.kind == "rows")
        if IMAGE_SIZE not in rows.arrays:
            hint = "extract into a new cache with another --out"
            raise UsageError(f"{rows.prefix} does not know how large its images are", hint=hint)
        self._reader = PartReader(objects, rows)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """int32 (rows, 2): 0 for images that cannot be read."""
        return self._reader.take(IMAGE_SIZE, rows)
