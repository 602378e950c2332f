"""The shards of one array as one ndarray: each file mapped at its place in a single reserved address range.

Shard data is plain rows, so no copy and no decoding is needed, and a random batch is one `np.take`.
"""

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptCacheError, FeatureCacheError

__all__ = ["map_shards"]

_FIXED = 0x10  # MAP_FIXED on Linux and macOS; the mmap module has no name for it
_FAILED = ctypes.c_void_p(-1).value


def map_shards(files: Mapping[int, tuple[Path, int]], *, slots: int, slot_bytes: int) -> np.ndarray:
    """uint8 (slots * slot_bytes,), read-only: the first `bytes` of each (path, bytes) at slot * slot_bytes.

    Slots without a file are zeros: the caller must know which rows exist. Where a slot is no multiple of the page
    size, or the system cannot map at a fixed place, the files are read into memory instead.
    Raises CorruptCacheError for a file that is missing, a link, or too short.
    """
    mappable = slot_bytes % mmap.PAGESIZE == 0 and sys.platform in ("linux", "darwin")
    return (
        _mapped(files, slots * slot_bytes, slot_bytes) if mappable else _loaded(files, slots * slot_bytes, slot_bytes)
    )


def _loaded(files: Mapping[int, tuple[Path, int]], total: int, slot_bytes: int) -> np.ndarray:
    array = np.zeros(total, np.uint8)
    for slot, (path, size) in files.items():
        descriptor = _open(path, size)
        with os.fdopen(descriptor, "rb") as file:
            file.readinto(array[slot * slot_bytes : slot * slot_bytes + size].data)
    array.flags.writeable = False
    return array


def _mapped(files: Mapping[int, tuple[Path, int]], total: int, slot_bytes: int) -> np.ndarray:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def place(address: int | None, size: int, flags: int, descriptor: int) -> int:
        found = libc.mmap(address, size, mmap.PROT_READ, flags, descriptor, 0)
        if found is None or found == _FAILED:
            number = ctypes.get_errno()
            raise FeatureCacheError(f"cannot map {size:,} bytes: {os.strerror(number)}", hint="check `ulimit -v`")
        return int(found)

    start = place(None, total, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    try:
        for slot, (path, size) in files.items():
            descriptor = _open(path, size)
            try:
                place(start + slot * slot_bytes, size, mmap.MAP_SHARED | _FIXED, descriptor)
            finally:
                os.close(descriptor)
    except BaseException:
        libc.munmap(start, total)
        raise
    buffer = (ctypes.c_uint8 * total).from_address(start)
    release = weakref.finalize(buffer, libc.munmap, start, total)  # the array below keeps the buffer alive
    release.atexit = False  # other exit handlers may still read; the mapping ends with the process
    array = np.frombuffer(memoryview(buffer), np.uint8)
    array.flags.writeable = False
    return array


def _open(path: Path, size: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise CorruptCacheError(f"cannot open {path}: {os.strerror(error.errno or 0)}") from None
    # touching a mapping beyond the end of its file kills the process, so the size is checked before
    if os.fstat(descriptor).st_size < size:
        os.close(descriptor)
        raise CorruptCacheError(f"{path} is shorter than its commit record says")
    return descriptor
