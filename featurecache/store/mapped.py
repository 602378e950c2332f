"""The shards of one array as one ndarray: each file mapped at its place in a single reserved address range.

Shard data is plain rows, so no copy and no decoding is needed, and a random batch is one `np.take`.
"""

import ctypes
import functools
import mmap
import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptCacheError, FeatureCacheError

__all__ = ["map_shards", "will_need"]

_WILL_NEED = 3  # MADV_WILLNEED on Linux and macOS
_HUGE_PAGES = 14  # MADV_HUGEPAGE on Linux
_HUGE_PAGE = 2**21
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


def will_need(values: np.ndarray, start: int, stop: int) -> None:
    """Tell the system that rows [start, stop) of an array over mapped shards are read soon: it begins to fetch them.

    Advice only: nothing happens where the rows are in memory already, or the system takes no advice.
    """
    if sys.platform not in ("linux", "darwin") or stop <= start:
        return
    begin = values.ctypes.data + start * values.strides[0]
    skew = begin % mmap.PAGESIZE  # an address must be that of a page
    size = (stop - start) * values.strides[0] + skew
    _libc().madvise(begin - skew, size, _WILL_NEED)


def _loaded(files: Mapping[int, tuple[Path, int]], total: int, slot_bytes: int) -> np.ndarray:
    try:
        array = np.zeros(total, np.uint8)  # what no file fills is never touched, so it takes no memory
    except MemoryError:
        path = next(iter(files.values()))[0]
        message = f"{path} is said to be one of {total // slot_bytes:,} shards: {total:,} bytes cannot be had"
        raise CorruptCacheError(message, hint="check `ulimit -v`, or restore part.json from a copy") from None
    for slot, (path, size) in files.items():
        descriptor = _open(path, size)
        with os.fdopen(descriptor, "rb") as file:
            file.readinto(array[slot * slot_bytes : slot * slot_bytes + size].data)
    array.flags.writeable = False
    return array


def _mapped(files: Mapping[int, tuple[Path, int]], total: int, slot_bytes: int) -> np.ndarray:
    libc = _libc()

    def place(address: int | None, size: int, flags: int, descriptor: int) -> int:
        found = libc.mmap(address, size, mmap.PROT_READ, flags, descriptor, 0)
        if found is None or found == _FAILED:
            number = ctypes.get_errno()
            raise FeatureCacheError(f"cannot map {size:,} bytes: {os.strerror(number)}", hint="check `ulimit -v`")
        return int(found)

    size = total + _HUGE_PAGE  # so that the first shard can begin where a huge page may
    reserved = place(None, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    start = -(-reserved // _HUGE_PAGE) * _HUGE_PAGE
    try:
        for slot, (path, length) in files.items():
            descriptor = _open(path, length)
            try:
                place(start + slot * slot_bytes, length, mmap.MAP_SHARED | _FIXED, descriptor)
            finally:
                os.close(descriptor)
    except BaseException:
        libc.munmap(reserved, size)
        raise
    if sys.platform == "linux":
        # the system then reads files that are small and cold in huge pages, which random rows find 1.3 times faster
        libc.madvise(start, total, _HUGE_PAGES)
    buffer = (ctypes.c_uint8 * total).from_address(start)
    release = weakref.finalize(buffer, libc.munmap, reserved, size)  # the array below keeps the buffer alive
    release.atexit = False  # other exit handlers may still read; the mapping ends with the process
    array = np.frombuffer(memoryview(buffer), np.uint8)
    array.flags.writeable = False
    return array


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


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
