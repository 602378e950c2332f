"""What an object's bytes are, in hashes."""

import hashlib
from dataclasses import dataclass

import google_crc32c

from featurecache.store.objects import LocalObjects

__all__ = ["Hashes", "hash_object"]

_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class Hashes:
    """What an object's bytes must be."""

    bytes: int
    crc32c: int
    sha256: str


def hash_object(objects: LocalObjects, key: str) -> Hashes:
    """Size and hashes of an object, in memory that does not grow with it. Raises CorruptCacheError."""
    digest, crc, size = hashlib.sha256(), 0, 0
    with objects.open(key) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            crc, size = google_crc32c.extend(crc, block), size + len(block)
    return Hashes(size, crc, digest.hexdigest())
