"""What a split is to hold besides what it has: the plans of `fc extend`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from featurecache.errors import IdentityError, UsageError, differences
from featurecache.sources import Source
from pipelines.extract import augmentation_of
from pipelines.fill import EVALUATION_SPLITS, Lesson, SplitPlan
from pipelines.standing import Standing, Teachers, gave, order_of, views_of

if TYPE_CHECKING:
    from featurecache.augment import Augmentation
    from featurecache.store.layout import PartSpec
    from featurecache.store.reader import Cache
    from featurecache.teachers import Teacher

__all__ = ["Wish", "plan_growth"]

_VIEWS = re.compile(r"(\+?)([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for, as it was typed."""

    views: str | None
    augment: str | None
    seed: int | None
    outputs: Sequence[str] | None
    encode: Mapping[str, str]
    temperatures: Sequence[float]
    store_inputs: int | None
    precision: str | None
    named: bool
    """Whether the splits were: otherwise val and test get no random views."""
    is_inputs_only: bool


def plan_growth(cache: "Cache", split: str, source: Source, teachers: Teachers, wish: Wish) -> SplitPlan:
    """What one split is to hold besides what it has."""
    standing = Standing(cache, split)
    if not standing.bases:
        if wish.named:
            _refuse_for_new_split(split, wish)
        return _new_split(cache, split, source, teachers)
    if wish.is_inputs_only:
        return _only_inputs(cache, split, source, standing, wish.store_inputs)
    evaluates = split in EVALUATION_SPLITS and not wish.named
    stop = standing.views if evaluates else _wanted_views(wish.views, standing.views)
    networks = teachers.of(standing)
    augmentation, seed = _augmentation(cache, standing, wish, stop, networks[0])
    drawn = max((views_of(part)[1] for part in standing.drawn), default=1)
    _refuse_other_count(cache, split, (drawn, stop))
    is_new = not any(gave(network, base) for network in networks for base in standing.bases)
    if is_new and stop > standing.views:
        hint = "add the teacher first, in the views that there are; then ask for --views"
        raise UsageError(f"{networks[0].name} would have views of {split} that the others have not", hint=hint)
    lessons = [] if is_new else _further_views(standing, networks, augmentation, seed, stop)
    if wish.outputs or is_new:
        for network in networks:
            found = _further_outputs(standing, network, source, split, wish, augmentation, seed, stop)
            taken = {lesson.part.name for lesson in lessons}
            lessons += [replace(one, part=replace(one.part, name=standing.free(one.part.name, taken))) for one in found]
    return SplitPlan(
        split,
        source,
        lessons=lessons,
        inputs=_inputs(standing, networks, source, split, wish.store_inputs),
        network_input=networks[0].input,
        views=_plan_views(source, split, augmentation, seed, (drawn, stop)) if stop > drawn else [],
        augmentation=augmentation,
    )


def _further_views(
    standing: Standing, networks: "Sequence[Teacher]", augmentation: "Augmentation | None", seed: int, stop: int
) -> list[Lesson]:
    """What the chosen teachers gave before, in the views up to `stop`."""
    from featurecache.plan import more_views

    lessons: list[Lesson] = []
    for base in standing.bases:
        network = next((network for network in networks if gave(network, base)), None)
        first = standing.stop(base)
        if network is not None and augmentation is not None and first < stop:
            part = more_views(base, augmentation, seed=seed, views=(first, stop))
            part = replace(part, name=standing.free(part.name, {lesson.part.name for lesson in lessons}))
            lessons.append(Lesson(network, part, is_measured=True))
    return lessons


def _further_outputs(
    standing: Standing,
    network: "Teacher",
    source: Source,
    split: str,
    wish: Wish,
    augmentation: "Augmentation | None",
    seed: int,
    stop: int,
) -> list[Lesson]:
    """The outputs asked for that this teacher has not given yet, in all views."""
    from featurecache.plan import output_names, plan_part

    given = [base for base in standing.bases if gave(network, base)]
    known = {item.output.name for base in given for item in base.outputs}
    named = output_names(network, wish.outputs or ())
    wanted = named or ([] if given else [output.name for output in network.outputs])
    missing = [name for name in wanted if name not in known]
    if not missing:
        return []
    part = plan_part(
        network,
        source,
        split,
        outputs=missing,
        encode={name: spec for name, spec in wish.encode.items() if output_names(network, [name])[0] in missing},
        temperatures=wish.temperatures,
        precision=wish.precision or (given[0].identity["precision"] if given else "float32"),
        augmentation=augmentation,
        seed=seed,
        views=(0, stop),
    )
    order = order_of(given[0])[0] if given else 1 + max(order_of(base)[0] for base in standing.bases)
    return [Lesson(network, replace(part, facts={**part.facts, "order": order}))]


def _new_split(cache: "Cache", split: str, source: Source, teachers: Teachers) -> SplitPlan:
    """The plain view of what another split has, by the same teachers, kept in the same way."""
    from featurecache.plan import plan_part
    from featurecache.store_inputs import plan_inputs

    model = next((found for name in cache.splits if (found := Standing(cache, name)).bases), None)
    if model is None:
        raise UsageError("no split of the cache has outputs that another could get", hint="run `fc extract`")
    lessons = []
    for network in teachers.of(model):
        for base in (base for base in model.bases if gave(network, base)):
            encode = base.identity["encodings"]
            kept = {"outputs": list(encode), "encode": encode, "precision": base.identity["precision"]}
            part = plan_part(network, source, split, **kept)
            lessons.append(
                Lesson(network, replace(part, name=base.name, facts={**part.facts, "order": order_of(base)[0]}))
            )
    if not lessons:
        raise UsageError(f"the teacher has given nothing that {split} could get", hint="leave out --teacher")
    network_input = lessons[0].network.input
    inputs = plan_inputs(source, split, network_input) if source.modality == "text" else None
    return SplitPlan(split, source, lessons=lessons, inputs=inputs, network_input=network_input)


def _only_inputs(cache: "Cache", split: str, source: Source, standing: Standing, size: int | None) -> SplitPlan:
    """The samples themselves, as the cache's teacher reads them: no teacher is loaded for that."""
    from featurecache.store_inputs import plan_inputs
    from pipelines.load import teacher_input

    _refuse_size_of_texts(source, size)
    network_input = teacher_input(cache, cache.split(split))
    inputs = plan_inputs(source, split, network_input, size, taken=standing.names)
    return SplitPlan(split, source, inputs=inputs, network_input=network_input)


def _refuse_size_of_texts(source: Source, size: int | None) -> None:
    if source.modality == "text" and size is not None:
        raise UsageError("--store-inputs is for images", hint="the tokens of texts are always stored")


def _refuse_for_new_split(split: str, wish: Wish) -> None:
    given = {
        "--views": wish.views,
        "--outputs": wish.outputs,
        "--encode": wish.encode or None,
        "--augment": wish.augment,
        "--seed": wish.seed,
        "--store-inputs": wish.store_inputs,
    }
    if unused := [flag for flag, value in given.items() if value is not None]:
        message = f"{split} is a new split: it gets what the others have, in the plain view"
        raise UsageError(
            message, hint=f"add it first, without {', '.join(unused)}; then extend it with --split {split}"
        )


def _refuse_other_count(cache: "Cache", split: str, views: tuple[int, int]) -> None:
    """Raises UsageError where an interrupted run has begun views from the same one on, but not as many."""
    first, stop = views
    begun = (part for part in cache.all_parts() if (part.split, part.kind) == (split, "views"))
    other = next(
        (views_of(part)[1] for part in begun if views_of(part)[0] == first and views_of(part)[1] != stop), None
    )
    if other and stop > first:
        message = f"an interrupted run has begun to draw {other} views of {split}, not {stop}"
        raise UsageError(message, hint=f"finish that first, with --views {other}")


def _inputs(
    standing: Standing, networks: "Sequence[Teacher]", source: Source, split: str, size: int | None
) -> "PartSpec | None":
    """Inputs that are asked for, and the tokens of texts as the first of the teachers reads them."""
    from featurecache.store_inputs import plan_inputs

    if source.modality == "image" and size is None:
        return None
    _refuse_size_of_texts(source, size)
    return plan_inputs(source, split, networks[0].input, size, taken=standing.names)


def _plan_views(
    source: Source, split: str, augmentation: "Augmentation | None", seed: int, views: tuple[int, int]
) -> "list[PartSpec]":
    from featurecache.draw import plan_views

    return [] if augmentation is None else [plan_views(source, split, augmentation, seed=seed, views=views)]


def _augmentation(
    cache: "Cache", standing: Standing, wish: Wish, stop: int, network: "Teacher"
) -> "tuple[Augmentation | None, int]":
    """What draws a split's views and with which seed: what drew the first ones, of this split or of another.

    Raises IdentityError if others were asked for, UsageError for a second tokenizer.
    """
    from featurecache.augment import augmentation_from_json

    if stop == 1 and not standing.drawn:
        return None, 0
    others = (part for split in cache.splits for part in Standing(cache, split).drawn)
    first = next(iter(standing.drawn), None) or next(others, None)
    if first is None or (not standing.drawn and wish.augment):
        return augmentation_of(wish.augment, stop, network), wish.seed or 0
    augmentation, seed = augmentation_from_json(first.facts["augmentation"]), int(first.facts["seed"])
    if not standing.drawn:
        return augmentation, seed if wish.seed is None else wish.seed
    asked = (
        augmentation_of(wish.augment, stop, network)
        if wish.augment or augmentation.modality == "text"
        else augmentation
    )
    there = {"augmentation": augmentation.to_json(), "seed": seed}
    here = {"augmentation": asked.to_json() if asked else None, "seed": seed if wish.seed is None else wish.seed}
    if fields := differences(there, here):
        hint = "all views of a split are drawn alike; extract into another --out for others"
        raise IdentityError(f"the views of {first.prefix} are drawn otherwise:", fields=fields, hint=hint)
    return augmentation, seed


def _wanted_views(text: str | None, there: int) -> int:
    """One past the last view that there shall be: "+8" is so many more, "16" so many in all."""
    if text is None:
        return there
    match = _VIEWS.fullmatch(text.strip())
    if match is None:
        message = f"--views {text} is no number of views from 1 to 999,999"
        raise UsageError(message, hint="write +8 for eight more, or 16 for 16 in all")
    return max(there, int(match[2]) + (there if match[1] else 0))
