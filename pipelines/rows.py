"""The rows of caches that a recipe may use, joined with their samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.errors import UsageError
from featurecache.inputs import ImageInput, TextInput
from featurecache.sources import Source
from featurecache.store.reader import CacheReader
from featurecache.store.stored_inputs import StoredInputs
from featurecache.types import NO_LABEL
from pipelines.load import open_inputs, teacher_input
from pipelines.recipe import TrainRecipe
from pipelines.taught import Taught, open_teachers
from student.alignment import check_augmentation, check_lengths, check_same_length, check_stored
from student.given import elsewhere
from student.join import Joined, join
from student.models.build import DEFAULT_STUDENTS
from student.selection import label_map
from student.start import start_place, start_tokenizer
from student.tokenizer import read_tokenizer
from student.views import Views

__all__ = ["Rows", "of_first_cache", "open_rows"]

_USUAL = 4.0
"""The default temperature of kl."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a cache that a recipe may use, joined with their samples."""

    reader: CacheReader
    source: Source
    stored: StoredInputs | None
    """Where the inputs come from instead, if the cache holds them and no data are named."""
    input: ImageInput | TextInput
    views: Views
    digest: str
    objective: str
    """The recipe's, or the default for what the cache holds."""
    taught: Taught
    """By which teachers."""
    outputs: tuple[str, ...]
    """Teacher outputs that the objective needs, "TEACHER/embedding" where there are several."""
    joined: Joined
    keys: Sequence[str]
    """Of the joined rows."""
    classes: np.ndarray | None
    """The teacher's logit for each class of the data, or None if they do not correspond."""


def open_rows(recipe: TrainRecipe) -> Rows:
    """Open the cache and the data and join them. Raises UsageError, IncompleteError, SourceError."""
    cache, taught = open_teachers(recipe)
    reader = taught.reader
    shown = next(name for one in taught.given if one.row_of is None for name in one.outputs.values())
    sizes = {"img_size": recipe.img_size, "max_length": recipe.max_length}
    network_input = _student_input(recipe, teacher_input(cache, reader, output=shown, **sizes))
    source, stored = open_inputs(reader, recipe.data, network_input)
    objective = recipe.objective or _default_objective(taught, source)
    outputs = taught.needed(objective)
    own = of_first_cache(taught, outputs)
    check_same_length(reader, own, network_input)
    views = _views(recipe, taught.views(outputs))  # where labels alone teach, those of every output
    if views.count > 1 and reader.stored_views is not None:
        reader.stored_views.check_fits(network_input)
    taught.check(outputs, views=views.count)
    if recipe.check_inputs != "off":
        for one in taught.given:
            names = tuple(one.stored(taught.read(outputs)).values())
            if names or not taught.is_several:
                check_augmentation(one.reader, names, views=views.count)
        if stored is not None:
            check_stored(reader, own, stored)
    others = elsewhere(taught.given, taught.read(outputs))
    joined = join(
        reader,
        source,
        own,
        views=views.count,
        missing=recipe.missing,
        max_invalid=recipe.max_invalid,
        others=others,
    )
    if stored is not None:
        check_lengths(reader, own, stored, joined.rows)
    logits = next((spec for name, spec in {**taught.plain, **taught.specs}.items() if _is_logits(name)), None)
    return Rows(
        reader=reader,
        source=source,
        stored=stored,
        input=network_input,
        views=views,
        digest=taught.digests[0],
        objective=objective,
        taught=taught,
        outputs=outputs,
        joined=joined,
        keys=[source.keys[sample] for sample in joined.samples],
        classes=label_map(source.class_names, logits.classes if logits else (), recipe.class_map),
    )


def _student_input(recipe: TrainRecipe, of_teacher: ImageInput | TextInput) -> ImageInput | TextInput:
    """The teacher's, with the tokenizer that was given or that belongs to what the student starts from."""
    if isinstance(of_teacher, ImageInput):
        if recipe.tokenizer:
            raise UsageError("--tokenizer cannot be used: the cache's teacher takes images")
        return of_teacher
    text = None
    if recipe.tokenizer:
        text = read_tokenizer(recipe.tokenizer)
    elif recipe.init_from:
        text = start_tokenizer(start_place(recipe.init_from, recipe.student or DEFAULT_STUDENTS["text"]))
    return TextInput(text, max_length=of_teacher.max_length) if text else of_teacher


def of_first_cache(taught: Taught, outputs: Sequence[str]) -> tuple[str, ...]:
    """Those of these outputs that the first cache holds, by its own names for them."""
    read = taught.read(outputs)
    return tuple(name for one in taught.given if one.row_of is None for name in one.stored(read).values())


def _views(recipe: TrainRecipe, stored: int) -> Views:
    """Raises UsageError for more views than the cache holds, or batches too small for them."""
    if (recipe.views or 1) > stored:
        hint = f"add some with `fc extend {recipe.caches[0]} --views {recipe.views}`, or ask for fewer"
        raise UsageError(f"the cache holds {stored} views of each sample, not {recipe.views}", hint=hint)
    if recipe.views_per_sample > recipe.batch_size:
        message = f"{recipe.views_per_sample} views of a sample do not fit into batches of {recipe.batch_size}"
        raise UsageError(message, hint="raise --batch-size")
    return Views(recipe.views or stored, recipe.views_per_sample)


def _is_logits(output: str) -> bool:
    return output.rpartition("/")[2] == "logits"


def _default_objective(taught: Taught, source: Source) -> str:
    """All that the plain outputs of teachers and the data's labels can serve, each with weight 1."""
    serves = {"logits": _default_kl(taught), "embedding": "align-uniform"}
    terms = [objective for output, objective in serves.items() if output in taught.names]
    labelled = ["ce"] if (source.labels != NO_LABEL).any() else []
    return ",".join([*terms, *labelled])


def _default_kl(taught: Taught) -> str:
    """At its own temperature, or at one that all sparse logits were kept for."""
    kept = [
        set(temperatures)
        for one in taught.given
        if "logits" in one.outputs and (temperatures := one.reader.temperatures(one.outputs["logits"])) is not None
    ]
    common = set.intersection(*kept) if kept else set()
    return f"kl(temperature={max(common):g})" if common and _USUAL not in common else "kl"
