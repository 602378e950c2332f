"""Reading a cache's JSON without trusting it: capped size, capped depth, plain values."""

import json

from featurecache.errors import CorruptCacheError
from featurecache.store.objects import MAX_JSON_BYTES, LocalObjects
from featurecache.types import Json

__all__ = ["MAX_DEPTH", "read_json"]

MAX_DEPTH = 32
"""Deepest nesting; our own files stay below a third of it."""


def read_json(objects: LocalObjects, key: str, *, limit: int = MAX_JSON_BYTES) -> Json:
    """The parsed object. Raises CorruptCacheError if it is missing, too large, too deep, or not JSON."""
    data = objects.get(key, limit=limit)
    if _depth(data) > MAX_DEPTH:
        raise CorruptCacheError(f"{key} is nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(data)
    except ValueError as error:
        raise CorruptCacheError(f"{key} is not JSON: {error}") from None


def _depth(data: bytes) -> int:
    """An upper bound of the nesting; brackets within strings count too, which errs on the safe side."""
    deepest = depth = 0
    for byte in data:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest
