"""Reading a cache's JSON without trusting it: capped size and depth, plain values, and the hash that it carries."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.fingerprint import canonical_json, hash_json
from featurecache.store.objects import MAX_JSON_BYTES, LocalObjects
from featurecache.types import Json

__all__ = ["MAX_DEPTH", "check_count", "check_hash", "check_text", "checked_json", "parse_json", "read_json", "sign"]

MAX_DEPTH = 32
"""Deepest nesting; our own files stay below a third of it."""

_MAX_NUMBER = 2**53
"""Beyond it, not every reader of JSON has the same number."""
_MAX_VALUES = 2**21
"""Of one file, unless there are 32 bytes for each: two million empty lists take 150 MB in memory."""
_LONG = re.compile(rb"(?<![0-9.eE+])-?[0-9]{16,}(?![0-9.eE])")
_MOST_DIGITS = 17
"""What is longer is beyond _MAX_NUMBER, and beyond 4,300 digits Python makes no number of it."""
_BLOCK = 2**20
_HINT = "restore that file from a copy, or make the cache anew"

# what each byte outside strings does to the depth
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def sign(value: Json) -> bytes:
    """A JSON object as it is written: canonical, with the hash of all its other fields as "sha256".

    Every byte is decided by the values, so no byte can be changed unnoticed. Raises UsageError for a value that
    `read_json` would refuse.
    """
    try:
        data = _signed(value)
        parse_json(data, "it")
    except (ValueError, CorruptCacheError) as error:
        raise UsageError(f"this cannot be kept as JSON: {error}", hint="use smaller, finite numbers") from None
    return data


def read_json(objects: LocalObjects, key: str, *, limit: int = MAX_JSON_BYTES) -> Json:
    """An object that `sign` made, without its hash. Raises CorruptCacheError if it is missing, too large, or not so."""
    return checked_json(objects.get(key, limit=limit), key)


def checked_json(data: bytes, key: str) -> Json:
    """The object of JSON that `sign` made, without its hash. Raises CorruptCacheError for any other bytes."""
    value = parse_json(data, key)
    if not isinstance(value, dict):
        raise CorruptCacheError(f"{key} is not a JSON object", hint=_HINT)
    content = {name: item for name, item in value.items() if name != "sha256"}
    try:
        same = _signed(content) == data
    except ValueError as error:  # half a surrogate pair
        raise CorruptCacheError(f"{key} is not JSON: {error}", hint=_HINT) from None
    if not same:
        raise CorruptCacheError(f"{key} is not what was written: the sha256 in it is that of other values", hint=_HINT)
    return content


def parse_json(data: bytes, key: str) -> Json:
    """The value of UTF-8 JSON. Raises CorruptCacheError if it is not that, or more than we take from a stranger.

    Refused are nesting beyond MAX_DEPTH, a crowd of tiny values, names that stand twice, and whole numbers from 2**53.
    Depth and crowd are counted before anything is parsed.
    """
    bare = _outside_strings(data)
    nested = bare.count(b"[") + bare.count(b"{")
    if _depth(bare) > MAX_DEPTH:
        raise CorruptCacheError(f"{key} is nested more than {MAX_DEPTH} deep")
    if nested > 4096 + len(data) // 32 or bare.count(b",") > max(_MAX_VALUES, len(data) // 32):
        raise CorruptCacheError(f"{key} has too many tiny values for its {len(data):,} bytes")
    if any(len(digits) > _MOST_DIGITS or abs(int(digits)) >= _MAX_NUMBER for digits in _LONG.findall(bare)):
        raise CorruptCacheError(f"{key} has a whole number beyond 2**53")
    try:
        return json.loads(data.decode(), parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise CorruptCacheError(f"{key} is not JSON: {error}", hint=_HINT) from None


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


def check_hash(value: Json) -> str:
    """A SHA-256 in 64 hexadecimal digits. Raises TypeError or ValueError for anything else."""
    if len(check_text(value)) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"{value[:80]!r} is not a SHA-256")
    return value


def _signed(content: dict[str, Json]) -> bytes:
    return canonical_json({**content, "sha256": hash_json(content)})


def _outside_strings(data: bytes) -> bytes:
    """What is left of JSON without its strings, quotes aside."""
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"")  # now every quote begins or ends a string
    inside = False
    kept = []
    for codes in _blocks(plain):
        quoted = np.logical_xor.accumulate(codes == ord('"')) ^ inside
        kept.append(codes[~quoted].tobytes())
        inside = bool(quoted[-1])
    return b"".join(kept)


def _depth(bare: bytes) -> int:
    """Deepest nesting of brackets, in memory that does not depend on it."""
    depth = deepest = 0
    for codes in _blocks(bare):
        levels = depth + np.cumsum(_STEPS[codes], dtype=np.int64)
        depth, deepest = int(levels[-1]), max(deepest, int(levels.max()))
    return deepest


def _blocks(data: bytes) -> Iterator[np.ndarray]:
    """uint8 (bytes,) of at most a block each."""
    codes = np.frombuffer(data, np.uint8)
    return (codes[start : start + _BLOCK] for start in range(0, len(codes), _BLOCK))


def _object(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
