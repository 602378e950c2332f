"""One Zarr shard as it is written: rows appended and hashed as they come, then the index."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.layout import PartSpec, Shard, inner_rows, shard_key
from featurecache.store.objects import LocalObjects, disk_errors
from featurecache.types import ArraySpec, Json

__all__ = ["Payload", "ShardFile", "inner_checksums", "shard_index"]

_ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class Payload:
    """One durable shard file and the hashes of its bytes."""

    key: str
    bytes: int
    sha256: str
    crc32c: int
    """Of the whole file."""
    inner: tuple[int, ...]
    """crc32c of each inner chunk that is there, in row order."""

    def to_json(self) -> Json:
        """As it stands in a commit record."""
        return {
            "key": self.key,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "crc32c": self.crc32c,
            "inner_crc32c": list(self.inner),
        }


class ShardFile:
    """A temporary file that becomes one shard of one array. The bytes are the rows, then the shard's index."""

    def __init__(self, objects: LocalObjects, part: PartSpec, array: ArraySpec, shard: Shard) -> None:
        self.key = shard_key(part, array, shard)
        self._objects = objects
        self._array = array
        self._dtype = np.dtype(array.dtype).newbyteorder("<")
        rows = part.rows_per_shard
        self._inner_bytes = inner_rows(array, rows) * array.row_bytes
        self._slots = rows * array.row_bytes // self._inner_bytes
        self._sha256 = hashlib.sha256()
        self._crc = 0
        self._inner: list[int] = [0]
        self._size = 0
        self._path: Path
        self._file: BinaryIO
        self.adopted = False
        """Whether `finish` found the shard standing there, so that its rows may not be quite those appended."""
        self._path, self._file = objects.temporary()

    def append(self, values: np.ndarray) -> None:
        """Write rows, or the elements of a ragged array's rows, (number, *shape), and hash them."""
        fits = values.ndim > 0 and values.shape[1:] == self._array.shape
        array = np.ascontiguousarray(values.astype(self._dtype, casting="same_kind", copy=False))
        if not fits or self._size + array.nbytes > self._slots * self._inner_bytes:
            raise UsageError(f"{self._array.name} has no room for values of shape {values.shape} in this shard")
        data = array.reshape(-1).view(np.uint8).data
        while len(data):
            room = self._inner_bytes - self._size % self._inner_bytes
            self._write(bytes(data[:room]))
            data = data[room:]

    def finish(self) -> Payload:
        """Pad the last inner chunk, add the index, sync, and give the file its name; adopt what stands there already.

        Raises CorruptCacheError if a file of another size stands there, DiskFullError if the disk is full.
        """
        self._write(bytes(-self._size % self._inner_bytes if self._size else self._inner_bytes))
        self._hash_and_write(shard_index(len(self._inner), self._slots, self._inner_bytes))
        payload = Payload(self.key, self._size, self._sha256.hexdigest(), self._crc, tuple(self._inner))
        with disk_errors(), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._objects.publish(self._path, self.key):
            return payload
        return self._adopt(payload)

    def discard(self) -> None:
        """Give up: nothing of it stays."""
        with contextlib.suppress(OSError):  # closing writes what is buffered, and the disk may be full
            self._file.close()
        self._objects.discard(self._path)

    def _write(self, data: bytes) -> None:
        if data and self._size and self._size % self._inner_bytes == 0:
            self._inner.append(0)
        self._inner[-1] = google_crc32c.extend(self._inner[-1], data)
        self._hash_and_write(data)

    def _hash_and_write(self, data: bytes) -> None:
        with disk_errors():
            self._file.write(data)
        self._sha256.update(data)
        self._crc = google_crc32c.extend(self._crc, data)
        self._size += len(data)

    def _adopt(self, ours: Payload) -> Payload:
        """What an earlier, interrupted run left whole: it is kept, since a reader may have it mapped."""
        self.adopted = True
        chunks = len(ours.inner)
        index = shard_index(chunks, self._slots, self._inner_bytes)
        same_size = self._objects.size(self.key) == ours.bytes
        data = self._objects.get(self.key, limit=ours.bytes) if same_size else b""
        if not data.endswith(index):
            hint = "remove that file, then run the same command again"
            raise CorruptCacheError(f"{self.key} stands there, but is not a whole shard", hint=hint)
        return Payload(
            self.key,
            len(data),
            hashlib.sha256(data).hexdigest(),
            google_crc32c.value(data),
            inner_checksums(data[: chunks * self._inner_bytes], self._inner_bytes),
        )


def shard_index(chunks: int, slots: int, inner_bytes: int) -> bytes:
    """Zarr's index of a shard whose first `chunks` of `slots` inner chunks lie end to end: (offset, length) pairs,
    uint64 little-endian, all ones where a chunk is absent, then the crc32c of that."""
    index = np.full((slots, 2), _ABSENT, "<u8")
    index[:chunks, 0] = np.arange(chunks, dtype=np.uint64) * np.uint64(inner_bytes)
    index[:chunks, 1] = inner_bytes
    data = index.tobytes()
    return data + google_crc32c.value(data).to_bytes(4, "little")


def inner_checksums(data: bytes, inner_bytes: int) -> tuple[int, ...]:
    """crc32c of each inner chunk of a shard's data."""
    return tuple(google_crc32c.value(data[at : at + inner_bytes]) for at in range(0, len(data), inner_bytes))
