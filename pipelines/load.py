"""Opening what a run needs: a sealed cache, the samples it was made from, and the input its teacher had."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from featurecache.errors import IncompleteError, SourceError, UsageError
from featurecache.inputs import ImageInput, TextInput, input_from_json
from featurecache.sources import Source, open_data

if TYPE_CHECKING:
    from featurecache.store.reader import Cache, CacheReader

__all__ = ["has_outputs", "open_samples", "open_sealed", "open_split", "teacher_input"]


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


def open_samples(cache: "Cache", split: str, data: Sequence[str] | None = None) -> Source:
    """The samples of a split: from `data`, or from where the cache says they were. Raises SourceError."""
    hint = cache.source
    columns = {name: hint[name] for name in ("text_column", "label_column", "id_column") if name in hint}
    limit = None if data else hint.get("limit")
    try:
        return open_data(list(data or hint.get("data", ())), splits=[split], limit=limit, **columns)[split]
    except SourceError as error:
        if data:
            raise
        message = f"the samples are not where the cache says they were: {error.message}"
        raise SourceError(message, hint="say where they are now with --data") from error


def teacher_input(
    cache: "Cache", reader: "CacheReader", *, img_size: int | None = None, max_length: int | None = None
) -> ImageInput | TextInput:
    """The input of the teacher behind the cache, at another size or length where one is given.

    The student sees the same crop and the same tokens as the teacher did. Raises UsageError for the option of the other
    kind of input.
    """
    part = reader.teacher_part(next(iter(reader.outputs)))
    value = part.facts["input"]
    unused = "--max-length" if value["kind"] == "image" and max_length else ""
    unused = "--img-size" if value["kind"] == "text" and img_size else unused
    if unused:
        raise UsageError(f"{unused} cannot be used: the cache's teacher takes {value['kind']}s")
    if value["kind"] == "image":
        found = input_from_json(value)
        assert isinstance(found, ImageInput)
        return replace(found, size=img_size or found.size)
    tokenizer = cache.asset(part, "tokenizer.json").decode()
    return TextInput(tokenizer, max_length=max_length or value["max_length"])
