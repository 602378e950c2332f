"""Opening what a run needs: a sealed cache, the samples it was made from, and the input its teacher had."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from featurecache.errors import CorruptCacheError, FeatureCacheError, IncompleteError, SourceError, UsageError
from featurecache.inputs import ImageInput, TextInput, input_from_json
from featurecache.sources import Source, is_remote, open_data
from featurecache.store.validate import check_count
from featurecache.types import Json

if TYPE_CHECKING:
    from featurecache.store.layout import PartSpec
    from featurecache.store.reader import Cache, CacheReader
    from featurecache.store.stored_inputs import StoredInputs

__all__ = ["has_outputs", "open_inputs", "open_samples", "open_sealed", "open_split", "teacher_input"]


_MOST_TOKENS = 2**17
"""Of a text, that a cache can ask for."""
_MOST_GAPS = 2**16
"""Ids without a token, besides as many as there are tokens."""
_COLUMNS = ("text_column", "label_column", "id_column", "image_column")


def open_sealed(path: str) -> "tuple[Cache, str]":
    """A cache and its digest. Raises IncompleteError if its extraction was never finished."""
    from featurecache.store.reader import open_cache

    cache = open_cache(path)
    if cache.seal is None:
        hint = "finish it: run the same `fc extract` again; `fc status` shows what is missing"
        raise IncompleteError(f"the cache {path} is not sealed: its extraction is not finished", hint=hint)
    return cache, cache.seal.digest


def has_outputs(cache: "Cache", split: str) -> bool:
    """Whether a split of a cache holds what a teacher gave; one whose extraction was interrupted may not."""
    return split in cache.splits and any(part.kind == "teacher" for part in cache.parts(split))


def open_split(cache: "Cache", split: str) -> "CacheReader":
    """A reader of a split that has outputs. Raises UnknownNameError, IncompleteError."""
    reader = cache.split(split)
    if not has_outputs(cache, split):
        hint = "run the same `fc extract` again to finish it"
        raise IncompleteError(f"no teacher's outputs over split {split!r} are complete yet", hint=hint)
    return reader


def open_samples(
    cache: "Cache", split: str, data: Sequence[str] | None = None, *, as_extracted: bool = False
) -> Source:
    """The samples of a split: from `data`, or from where the cache says they were on this machine.

    With `as_extracted` no more of `data` than the cache was made from. Raises SourceError, also where the cache says
    that they came over the network.
    """
    hint = cache.origin(split)
    columns = {name: hint[name] for name in _COLUMNS if name in hint}
    places = hint.get("data", ())
    if not data and any(is_remote(str(place)) for place in places):
        # a cache may come from anybody: it decides neither what addresses are called nor what a library opens
        message = f"the cache says its samples are at {', '.join(map(str, places))}"
        raise SourceError(message, hint="give that with --data to take them from there, or a local copy")
    limit = None if data and not as_extracted else hint.get("limit")
    try:
        return open_data(list(data or places), splits=[split], limit=limit, **columns)[split]
    except SourceError as error:
        if data:
            raise
        message = f"the samples are not where the cache says they were: {error.message}"
        raise SourceError(message, hint="say where they are now with --data") from error


def open_inputs(
    reader: "CacheReader", data: Sequence[str] | None, network_input: ImageInput | TextInput
) -> "tuple[Source, StoredInputs | None]":
    """What a student is shown: inputs that the cache holds, unless `data` are named or it needs others, or samples.

    Raises SourceError.
    """
    from featurecache.store.stored_inputs import ListedSource

    stored = None if data else reader.stored_inputs(network_input)
    if stored is not None:
        return ListedSource(reader), stored
    return open_samples(reader.cache, reader.split, data), None


def teacher_input(
    cache: "Cache",
    reader: "CacheReader",
    *,
    output: str | None = None,
    img_size: int | None = None,
    max_length: int | None = None,
) -> ImageInput | TextInput:
    """The input of the teacher behind an output, or behind the first, at another size or length where one is given.

    The student sees the same crop and the same tokens as the teacher did. Raises UsageError for the option of the other
    kind of input, CorruptCacheError if what the cache says of it makes no sense.
    """
    part = reader.teacher_part(output or next(iter(reader.outputs)))
    value = part.facts["input"]
    if not isinstance(value, dict) or value.get("kind") not in ("image", "text"):
        raise CorruptCacheError(f"{part.prefix}/part.json does not say what its teacher takes in")
    unused = "--max-length" if value["kind"] == "image" and max_length else ""
    unused = "--img-size" if value["kind"] == "text" and img_size else unused
    if unused:
        raise UsageError(f"{unused} cannot be used: the cache's teacher takes {value['kind']}s")
    if value["kind"] == "image":
        try:
            found = input_from_json(value)
        except UsageError as error:
            raise CorruptCacheError(f"{part.prefix}/part.json has an input that is none: {error.message}") from None
        assert isinstance(found, ImageInput)
        return replace(found, size=img_size or found.size)
    return _text_input(cache, part, max_length or value.get("max_length"))


def _text_input(cache: "Cache", part: "PartSpec", max_length: Json) -> TextInput:
    """The tokenizer of a part, once tried. Raises CorruptCacheError if it is none."""
    try:
        length = check_count(max_length, below=_MOST_TOKENS + 1)
        found = TextInput(cache.asset(part, "tokenizer.json").decode(), max_length=length)
        found.prepare("a trial")
        tokens = found.tokenizer.get_vocab_size(with_added_tokens=True)
        if found.vocabulary_size > 2 * tokens + _MOST_GAPS:  # a student has a row of weights for each id
            raise ValueError(f"its {tokens:,} tokens have ids up to {found.vocabulary_size - 1:,}")
    except FeatureCacheError:
        raise
    except Exception as error:  # noqa: BLE001 - the tokenizers package raises nothing more exact
        raise CorruptCacheError(f"{part.prefix}/assets/tokenizer.json cannot be used: {error}") from None
    return found
