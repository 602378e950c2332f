"""`fc extend`: more views, outputs, teachers, splits or inputs for a cache that stands; no byte of it is changed."""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import IdentityError, SourceError, UsageError, differences
from featurecache.fingerprint import canonical_json
from featurecache.sources import Source
from featurecache.types import Json, Modality
from pipelines.events import Message, Run
from pipelines.extract import augmentation_of
from pipelines.fill import EVALUATION_SPLITS, Lesson, SplitPlan, fill, loading
from pipelines.space import check_space, need_of

if TYPE_CHECKING:
    from featurecache.augment import Augmentation
    from featurecache.store.layout import PartSpec
    from featurecache.store.reader import Cache
    from featurecache.teachers import Teacher

__all__ = ["extend_cache"]

_VIEWS = re.compile(r"(\+?)([1-9][0-9]{0,5})")


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
    from pipelines.load import open_sealed

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
    wish = _Wish(
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
    if wish.is_inputs_only and (augment or seed is not None):
        hint = "ask for random ones with --views 8"
        raise UsageError("--augment and --seed make no difference without further views", hint=hint)
    teachers = _Teachers(opened, teacher, teacher_options)
    plans = [_plan(opened, split, _source(opened, split, data), teachers, wish) for split in chosen]
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
        return open_samples(cache, split, data)
    if data:
        return open_data(list(data), splits=[split])[split]
    try:
        return open_samples(cache, split)
    except SourceError as error:
        message = f"{split} is no split of the cache, nor of the data it was made from"
        raise SourceError(message, hint=f"say what its samples are with --data {split}=DATA") from error


def _plan(cache: "Cache", split: str, source: Source, teachers: "_Teachers", wish: "_Wish") -> SplitPlan:
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
    augmentation, seed = _augmentation(standing, wish, stop, networks[0])
    drawn = max((_views(part)[1] for part in standing.drawn), default=1)
    _refuse_other_count(cache, split, (drawn, stop))
    is_new = not any(_gave(network, base) for network in networks for base in standing.bases)
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
    standing: "Standing", networks: "Sequence[Teacher]", augmentation: "Augmentation | None", seed: int, stop: int
) -> list[Lesson]:
    """What the chosen teachers gave before, in the views up to `stop`."""
    from featurecache.plan import more_views

    lessons: list[Lesson] = []
    for base in standing.bases:
        network = next((network for network in networks if _gave(network, base)), None)
        first = standing.stop(base)
        if network is not None and augmentation is not None and first < stop:
            part = more_views(base, augmentation, seed=seed, views=(first, stop))
            part = replace(part, name=standing.free(part.name, {lesson.part.name for lesson in lessons}))
            lessons.append(Lesson(network, part, is_measured=True))
    return lessons


def _further_outputs(
    standing: "Standing",
    network: "Teacher",
    source: Source,
    split: str,
    wish: "_Wish",
    augmentation: "Augmentation | None",
    seed: int,
    stop: int,
) -> list[Lesson]:
    """The outputs asked for that this teacher has not given yet, in all views."""
    from featurecache.plan import plan_part

    given = [base for base in standing.bases if _gave(network, base)]
    known = {item.output.name for base in given for item in base.outputs}
    wanted = wish.outputs or ([] if given else [output.name for output in network.outputs])
    missing = [name for name in wanted if name not in known]
    if not missing:
        return []
    part = plan_part(
        network,
        source,
        split,
        outputs=missing,
        encode={name: spec for name, spec in wish.encode.items() if name in missing},
        temperatures=wish.temperatures,
        precision=wish.precision or (given[0].identity["precision"] if given else "float32"),
        augmentation=augmentation,
        seed=seed,
        views=(0, stop),
    )
    order = _order(given[0])[0] if given else 1 + max(_order(base)[0] for base in standing.bases)
    return [Lesson(network, replace(part, facts={**part.facts, "order": order}))]


def _new_split(cache: "Cache", split: str, source: Source, teachers: "_Teachers") -> SplitPlan:
    """The plain view of what another split has, by the same teachers, kept in the same way."""
    from featurecache.plan import plan_part
    from featurecache.store_inputs import plan_inputs

    model = next((found for name in cache.splits if (found := Standing(cache, name)).bases), None)
    if model is None:
        raise UsageError("no split of the cache has outputs that another could get", hint="run `fc extract`")
    lessons = []
    for network in teachers.of(model):
        for base in (base for base in model.bases if _gave(network, base)):
            encode = base.identity["encodings"]
            kept = {"outputs": list(encode), "encode": encode, "precision": base.identity["precision"]}
            part = plan_part(network, source, split, **kept)
            lessons.append(
                Lesson(network, replace(part, name=base.name, facts={**part.facts, "order": _order(base)[0]}))
            )
    if not lessons:
        raise UsageError(f"the teacher has given nothing that {split} could get", hint="leave out --teacher")
    network_input = lessons[0].network.input
    inputs = plan_inputs(source, split, network_input) if source.modality == "text" else None
    return SplitPlan(split, source, lessons=lessons, inputs=inputs, network_input=network_input)


def _only_inputs(cache: "Cache", split: str, source: Source, standing: "Standing", size: int | None) -> SplitPlan:
    """The samples themselves, as the cache's teacher reads them: no teacher is loaded for that."""
    from featurecache.store_inputs import plan_inputs
    from pipelines.load import teacher_input

    network_input = teacher_input(cache, cache.split(split))
    inputs = plan_inputs(source, split, network_input, size, taken=standing.names)
    return SplitPlan(split, source, inputs=inputs, network_input=network_input)


def _refuse_for_new_split(split: str, wish: "_Wish") -> None:
    given = {"--views": wish.views, "--outputs": wish.outputs, "--augment": wish.augment, "--seed": wish.seed}
    given |= {"--encode": wish.encode, "--store-inputs": wish.store_inputs}
    if unused := [flag for flag, value in given.items() if value not in (None, {})]:
        message = f"{split} is a new split: it gets what the others have, in the plain view"
        raise UsageError(
            message, hint=f"add it first, without {', '.join(unused)}; then extend it with --split {split}"
        )


def _refuse_other_count(cache: "Cache", split: str, views: tuple[int, int]) -> None:
    """Raises UsageError where an interrupted run has begun views from the same one on, but not as many."""
    first, stop = views
    begun = (part for part in cache.all_parts() if (part.split, part.kind) == (split, "views"))
    other = next((_views(part)[1] for part in begun if _views(part)[0] == first and _views(part)[1] != stop), None)
    if other and stop > first:
        message = f"an interrupted run has begun to draw {other} views of {split}, not {stop}"
        raise UsageError(message, hint=f"finish that first, with --views {other}")


def _inputs(
    standing: "Standing", networks: "Sequence[Teacher]", source: Source, split: str, size: int | None
) -> "PartSpec | None":
    """Inputs that are asked for, and the tokens of texts as the first of the teachers reads them."""
    from featurecache.store_inputs import plan_inputs

    if source.modality == "image" and size is None:
        return None
    return plan_inputs(source, split, networks[0].input, size, taken=standing.names)


def _plan_views(
    source: Source, split: str, augmentation: "Augmentation | None", seed: int, views: tuple[int, int]
) -> "list[PartSpec]":
    from featurecache.draw import plan_views

    return [] if augmentation is None else [plan_views(source, split, augmentation, seed=seed, views=views)]


def _augmentation(
    standing: "Standing", wish: "_Wish", stop: int, network: "Teacher"
) -> "tuple[Augmentation | None, int]":
    """What draws a split's views and with which seed: what drew the first ones, where there are some.

    Raises IdentityError if others were asked for, UsageError for a second tokenizer.
    """
    from featurecache.augment import augmentation_from_json

    if stop == 1 and not standing.drawn:
        if wish.augment or wish.seed is not None:
            hint = "ask for random ones with --views 8"
            raise UsageError("--augment and --seed make no difference to view 0", hint=hint)
        return None, 0
    if not standing.drawn:
        return augmentation_of(wish.augment, stop, network), wish.seed or 0
    first = standing.drawn[0]
    augmentation, seed = augmentation_from_json(first.facts["augmentation"]), int(first.facts["seed"])
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
        raise UsageError(f"--views {text} is no number of views", hint="write +8 for eight more, or 16 for 16 in all")
    return max(there, int(match[2]) + (there if match[1] else 0))


class _Teachers:
    """The teachers whose outputs are to be added, each loaded when it is first needed."""

    def __init__(self, cache: "Cache", name: str | None, options: Mapping[str, Any]) -> None:
        self._name, self._options = name, dict(options)
        self.loaded: list[Teacher] = []
        bases = [base for split in cache.splits for base in Standing(cache, split).bases]
        if name is not None:
            self._load_named(name, bases)
        elif given := [option for option, value in self._options.items() if value]:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in given)
            raise UsageError(f"{flags} without --teacher", hint="name the teacher that it is for")

    def of(self, standing: "Standing") -> "list[Teacher]":
        """Those whose outputs stand in a split, or the one that was named."""
        from pipelines.recompute import load_again

        if self._name is not None:
            return self.loaded
        found = []
        for base in standing.bases:
            network = next((network for network in self.loaded if _gave(network, base)), None)
            if network is None:
                network = load_again(base, None, None, None)
                self.loaded.append(network)
            found += [] if network in found else [network]
        return found

    def _load_named(self, name: str, bases: "Sequence[PartSpec]") -> None:
        from featurecache.teachers import load_teacher

        modality: Modality = "text" if bases and bases[0].facts["input"]["kind"] == "text" else "image"
        network = load_teacher(name, modality=modality, **self._options)
        self.loaded.append(network)


@dataclass(frozen=True, slots=True)
class _Wish:
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


class Standing:
    """What the seal covers of a split."""

    def __init__(self, cache: "Cache", split: str) -> None:
        parts = cache.parts(split) if split in cache.splits else []
        self.names = {part.name for part in parts} | set(cache.objects.list(split))
        teachers = [part for part in parts if part.kind == "teacher"]
        self.bases = sorted((part for part in teachers if _views(part)[0] == 0), key=_order)
        """Parts that begin with view 0, the oldest first."""
        self.drawn = [part for part in parts if part.kind == "views"]
        self.views = max((_views(part)[1] for part in teachers), default=1)
        self._teachers = teachers

    def stop(self, base: "PartSpec") -> int:
        """One past the last view of a part and of those that go on with it."""
        same = (part for part in self._teachers if _kept(part) == _kept(base))
        return max(_views(part)[1] for part in same)

    def free(self, name: str, taken: Collection[str] = ()) -> str:
        """The name for a part, with a number behind it where that is taken."""
        names = (name, *(f"{name[:58]}-{number}" for number in range(2, 10_000)))
        return next(free for free in names if free not in self.names and free not in taken)


def _gave(network: "Teacher", part: "PartSpec") -> bool:
    """Whether a part is what this teacher gave."""
    there = part.identity["teacher"], part.identity["input"]
    return canonical_json(there) == canonical_json((network.identity(), network.input.to_json()))


def _views(part: "PartSpec") -> tuple[int, int]:
    return part.views or (0, 1)


def _order(part: "PartSpec") -> tuple[int, str]:
    return int(part.facts.get("order", 0)), part.name


def _kept(part: "PartSpec") -> Json:
    return part.facts["teacher_id"], [item.to_json() for item in part.outputs]
