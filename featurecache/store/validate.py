"""Reading a cache's JSON without trusting it: capped size, capped depth, plain values."""

import json
from typing import NoReturn

from featurecache.errors import CorruptCacheError
from featurecache.store.objects import MAX_JSON_BYTES, LocalObjects
from featurecache.types import Json

__all__ = ["MAX_DEPTH", "check_count", "check_text", "parse_json", "read_json"]

MAX_DEPTH = 32
"""Deepest nesting; our own files stay below a third of it."""


def read_json(objects: LocalObjects, key: str, *, limit: int = MAX_JSON_BYTES) -> Json:
    """The parsed object. Raises CorruptCacheError if it is missing, too large, too deep, or not JSON."""
    return parse_json(objects.get(key, limit=limit), key)


def parse_json(data: bytes, key: str) -> Json:
    """The value of UTF-8 JSON without NaN. Raises CorruptCacheError if it is too deep, or not that."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{key} is not JSON: {error}") from None
    if _deeper(value, MAX_DEPTH):
        raise CorruptCacheError(f"{key} is nested more than {MAX_DEPTH} deep")
    return value


def check_count(value: Json, *, below: int = 2**48) -> int:
    """A whole number from 0. Raises ValueError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number below {below:,}")
    return value


def check_text(value: Json) -> str:
    """A string. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is not text")
    return value


def _deeper(value: Json, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` deep."""
    level = [value]
    for _ in range(limit):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
