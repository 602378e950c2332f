"""What `extract` and `extend` share: the parts that splits still need, written one after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurecache.sources import Source
from featurecache.types import Json
from pipelines.events import Advance, Message, Run, default_device, default_workers

if TYPE_CHECKING:
    from featurecache.augment import Augmentation
    from featurecache.extract import Progress
    from featurecache.inputs import Input
    from featurecache.store.layout import PartSpec
    from featurecache.store.objects import LocalObjects
    from featurecache.teachers.base import Recorded, Teacher

__all__ = ["EVALUATION_SPLITS", "Lesson", "SplitPlan", "fill", "loading"]

EVALUATION_SPLITS = ("val", "test")
"""Splits that students are judged on: in the plain view alone."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A part that a teacher gives."""

    network: "Teacher | Recorded"
    part: "PartSpec"
    is_measured: bool = False
    """Whether its encodings are settled, as those of more views of a part are."""


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """All that one split is to hold; what is there already is left as it is."""

    name: str
    source: Source
    lessons: "Sequence[Lesson]" = ()
    inputs: "PartSpec | None" = None
    network_input: "Input | None" = None
    """What makes tokens of texts where there are inputs to store."""
    views: "Sequence[PartSpec]" = ()
    """Parts of parameters, drawn by the augmentation."""
    augmentation: "Augmentation | None" = None
    origin: Json = None
    """Where the samples of a split that is added later are: a hint, as cache.json has one for the first ones."""


def fill(objects: "LocalObjects", plans: Sequence[SplitPlan], options: Callable[[Source], dict[str, Any]]) -> Run[None]:
    """Write what is missing of every plan: rows, inputs, views, then what teachers give. Nothing is sealed.

    `options` are those of `featurecache.extract.extract` for a source. Raises IdentityError, DiskFullError.
    """
    from featurecache.rows import list_rows

    for plan in plans:
        for shard in list_rows(plan.source, objects, plan.name, origin=plan.origin):
            yield Advance(f"list {plan.name}", shard.stop, len(plan.source))
    for plan in plans:
        yield from _prepare(objects, plan, options(plan.source)["workers"])
    for plan in plans:
        for lesson in plan.lessons:
            yield from _teach(objects, plan, lesson, options(plan.source))


def _prepare(objects: "LocalObjects", plan: SplitPlan, workers: int) -> Run[None]:
    """Store inputs and draw views, without any teacher."""
    from featurecache.draw import draw_views
    from featurecache.store_inputs import store_inputs, stored_tokens

    if plan.inputs is not None:
        assert plan.network_input is not None
        for shard in store_inputs(plan.source, objects, plan.inputs, plan.network_input, workers=workers):
            yield Advance(f"store inputs {plan.name}", shard.stop, plan.inputs.rows)
    for part in plan.views:
        assert plan.augmentation is not None
        first, stop = part.views or (1, 1)
        tokens = None
        if plan.source.modality == "text" and plan.inputs and plan.network_input:
            tokens = stored_tokens(objects, plan.inputs, plan.network_input)
        for shard in draw_views(plan.source, objects, part, plan.augmentation, tokens=tokens):
            yield Advance(
                f"draw views {plan.name}", (shard.view - first) * part.rows + shard.stop, part.rows * (stop - first)
            )


def _teach(objects: "LocalObjects", plan: SplitPlan, lesson: Lesson, options: dict[str, Any]) -> Run[None]:
    from featurecache.draw import stored_views
    from featurecache.extract import extract
    from featurecache.measure import measured_part
    from featurecache.store.writer import find_part

    part = lesson.part
    if not lesson.is_measured and find_part(objects, plan.name, "teacher", part.identity) is None:
        yield Message(f"measuring what the encodings of {plan.name} cost")
        views = stored_views(objects, plan.name) if (part.views or (0, 1))[1] > 1 else None
        part = measured_part(lesson.network, plan.source, part, views=views, **options)
    yield from _followed(extract(lesson.network, plan.source, objects, part, **options), f"extract {plan.name}")


def _followed(run: "Iterator[Progress]", stage: str) -> Run[None]:
    has_waited = False
    for progress in run:
        if progress.is_waiting and not has_waited:
            has_waited = True
            yield Message("another extraction is at work on the rows that are left: waiting for it")
        facts = {"invalid": sum(progress.invalid.values())} if progress.invalid else {}
        yield Advance(stage, progress.done, progress.total, facts=facts, until_safe=progress.until_safe)


def loading(source: Source, *, device: str | None, workers: int | None, batch_size: int) -> dict[str, Any]:
    """Options of `extract` for a split."""
    chosen = device or default_device()
    loaders = default_workers(chosen) if workers is None else workers
    # starting processes for a few samples takes longer than decoding them
    return {"batch_size": batch_size, "workers": loaders if len(source) > 256 else 0, "device": chosen}
