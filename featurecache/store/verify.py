"""Whether a cache is whole and still what its records and seals say, byte by byte."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.fingerprint import hash_unit
from featurecache.store.hashes import Hashes, hash_object
from featurecache.store.layout import inner_rows
from featurecache.store.objects import LocalObjects
from featurecache.store.shard_file import Payload, shard_index
from featurecache.store.survey import Finding, Survey

__all__ = ["Checked", "Finding", "verify"]

_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class Checked:
    """How many bytes have been read and found right or wrong."""

    done: int
    total: int


def verify(objects: LocalObjects, *, sample: float = 1.0, seed: int = 0) -> Iterator[Finding | Checked]:
    """Check every object of a cache, finished or not, yielding what is wrong and how far it is.

    All JSON is checked against its own hash, its place and the seals; array metadata against part.json; payloads
    against their record and seal: size, SHA-256, crc32c of the file and of each inner chunk, and Zarr's index. The
    seals must be a chain. What is missing is told, and what nobody has listed. With `sample` below 1 only the sizes of
    the other payloads are looked at; which ones are read depends on (seed, key) alone. Memory does not grow with the
    payloads. Raises UsageError for a sample that is no share.
    """
    if not 0 <= sample <= 1:
        raise UsageError(f"a sample of {sample} is no share", hint="0 is none of the payloads, 1 is all")
    survey = Survey(objects)
    yield from survey.findings()
    chosen = {key: size for key, size in _sizes(survey) if key not in survey.payloads or _in(sample, seed, key)}
    done, total = 0, sum(chosen.values())
    yield Checked(done, total)
    for key in sorted(survey.promises.keys() | survey.payloads.keys()):
        yield from _check_object(survey, key, read=key in chosen)
        if key in chosen:
            done += chosen[key]
            yield Checked(done, total)


def _sizes(survey: Survey) -> Iterator[tuple[str, int]]:
    for key in survey.promises.keys() | survey.payloads.keys():
        if key in survey.files:
            yield key, survey.files[key]


def _in(sample: float, seed: int, key: str) -> bool:
    return hash_unit("verify", seed, key) < sample


def _check_object(survey: Survey, key: str, *, read: bool) -> Iterator[Finding]:
    """What is wrong with one object that a record or a seal lists; nothing for JSON that was told of already."""
    payload, promise = survey.payloads.get(key), survey.promises.get(key)
    try:
        size = survey.objects.size(key)  # asked again, since it may have come while the cache was looked through
        if payload and size != payload.bytes:
            yield Finding(key, f"has {size:,} bytes, its record says {payload.bytes:,}")
        elif promise and size != promise.bytes:
            yield Finding(key, f"has {size:,} bytes, the seal says {promise.bytes:,}")
        elif read:
            problem = _shard_problem(survey, key, payload) if payload else ""
            if not problem and promise and (not payload or promise != _as_hashes(payload)):
                problem = (
                    "" if hash_object(survey.objects, key) == promise else "is not what the seal says (sha256, crc32c)"
                )
            if problem:
                yield Finding(key, problem)
    except CorruptCacheError as error:
        yield Finding(key, error.message)
    except OSError as error:
        yield Finding(key, f"cannot be read: {os.strerror(error.errno or 0)}")


def _as_hashes(payload: Payload) -> Hashes:
    return Hashes(payload.bytes, payload.crc32c, payload.sha256)


def _shard_problem(survey: Survey, key: str, payload: Payload) -> str:
    """In words what differs from the record of a shard that has the right size, or ""."""
    part, array = survey.arrays[key]
    step = part.rows_per_shard
    inner_bytes = inner_rows(array, step) * array.row_bytes
    index = shard_index(len(payload.inner), step // inner_rows(array, step), inner_bytes)
    digest, whole = hashlib.sha256(), 0
    with survey.objects.open(key) as file:
        for number, expected in enumerate(payload.inner):
            found, left = 0, inner_bytes
            while left and (block := file.read(min(left, _BLOCK))):
                digest.update(block)
                found, whole = google_crc32c.extend(found, block), google_crc32c.extend(whole, block)
                left -= len(block)
            if found != expected:
                return f"is not what was committed: inner chunk {number} has another crc32c"
        end = file.read(len(index) + 1)
    digest.update(end)
    if end != index:
        return "is not what was committed: its index is another"
    if (digest.hexdigest(), google_crc32c.extend(whole, end)) != (payload.sha256, payload.crc32c):
        return "is not what was committed: its sha256 or crc32c is another"
    return ""
