import errno
import hashlib
import struct

import google_crc32c
import numpy as np
import pytest

from featurecache.errors import CorruptCacheError, DiskFullError, UsageError
from featurecache.store import objects as objects_module
from featurecache.store.shard_file import ShardFile
from featurecache.types import ArraySpec
from tests.store.small_parts import teacher_part

WIDE = 2**17  # float16 rows of 256 KiB: two make an inner chunk


def write(objects, part, shard, values, *, array=None):
    file = ShardFile(objects, part, array or part.arrays[0], shard)
    file.append(values[:1])
    file.append(values[1:])
    return file.finish()


def index_of(offsets, slots, length):
    """Zarr's shard index, packed by hand."""
    pairs = [(offset, length) for offset in offsets] + [(2**64 - 1, 2**64 - 1)] * (slots - len(offsets))
    data = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    return data + struct.pack("<I", google_crc32c.value(data))


def test_bytes_are_the_rows_then_the_index(objects):
    part = teacher_part(300, dim=WIDE)
    assert part.rows_per_shard == 256
    shard = part.shards()[1]
    values = np.random.default_rng(0).normal(size=(44, WIDE)).astype(np.float16)
    payload = write(objects, part, shard, values[:43])  # 43 rows fill 21 inner chunks and a half
    data = (objects.root / payload.key).read_bytes()
    padded = values[:43].tobytes() + bytes(WIDE * 2)
    assert data == padded + index_of([n * 2**19 for n in range(22)], 128, 2**19)
    assert (payload.key, payload.bytes) == ("train/vit/embedding/c/0/1/0", len(data))
    assert payload.sha256 == hashlib.sha256(data).hexdigest() and payload.crc32c == google_crc32c.value(data)
    assert payload.inner == tuple(google_crc32c.value(padded[at : at + 2**19]) for at in range(0, len(padded), 2**19))


@pytest.mark.parametrize(("lengths", "chunks"), [([], 1), ([1], 1), ([2**19], 1), ([2**19, 1], 2), ([3, 2**19], 2)])
def test_a_ragged_shard_holds_only_what_there_is(objects, lengths, chunks):
    part = teacher_part(20, views=None, arrays=(ArraySpec("text", "uint8", longest=2**19),))
    shard = part.shards()[0]
    file = ShardFile(objects, part, part.arrays[0], shard)
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 256, length, dtype=np.uint8) for length in lengths]
    for value in values:
        file.append(value)
    payload = file.finish()
    text = b"".join(value.tobytes() for value in values).ljust(chunks * 2**19, b"\0")
    expected = text + index_of([n * 2**19 for n in range(chunks)], part.rows_per_shard, 2**19)
    assert objects.get(payload.key, limit=2**24) == expected


def test_what_a_killed_run_left_is_adopted(objects):
    part = teacher_part(10)
    (shard,) = part.shards()
    first = write(objects, part, shard, np.ones((10, 4), np.float16))
    inode = (objects.root / first.key).stat().st_ino
    second = write(objects, part, shard, np.zeros((10, 4), np.float16))  # another result in the last bits, say
    assert second == first and (objects.root / first.key).stat().st_ino == inode
    assert list((objects.root / "_tmp").iterdir()) == []


@pytest.mark.parametrize("damage", ["shorter", "longer", "empty", "index", "link"])
def test_what_is_no_whole_shard_is_not_adopted(objects, damage):
    part = teacher_part(10)
    (shard,) = part.shards()
    path = objects.root / write(objects, part, shard, np.ones((10, 4), np.float16)).key
    data = path.read_bytes()
    path.unlink()
    changed = {"shorter": data[:-1], "longer": data + b"\0", "empty": b"", "index": data[:-1] + b"\0"}
    if damage == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(CorruptCacheError):
        write(objects, part, shard, np.ones((10, 4), np.float16))
    if damage != "link":
        assert path.read_bytes() == changed[damage]


@pytest.mark.parametrize(
    "values", [np.zeros((3, 5), np.float16), np.zeros((3,), np.float16), np.zeros((1025, 4), np.float16)]
)
def test_values_that_do_not_fit(objects, values):
    part = teacher_part(2000)
    file = ShardFile(objects, part, part.arrays[0], part.shards()[0])
    with pytest.raises(UsageError, match="embedding has no room for values of shape"):
        file.append(values)
    file.discard()


def test_values_of_another_kind_are_not_cast(objects):
    part = teacher_part(10)
    file = ShardFile(objects, part, part.arrays[1], part.shards()[0])
    with pytest.raises(TypeError):
        file.append(np.full(10, -1))
    file.discard()


@pytest.mark.parametrize("size", [4, 4000])  # less than the file's buffer, and more
def test_a_full_disk_while_rows_are_written(objects, monkeypatch, size):
    class Full:
        """A file whose disk has no room, not even for what close() flushes."""

        def __init__(self, file):
            self._file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "full")

        close = flush = lambda self: self.write(b"")

        def __del__(self):
            self._file.close()

    real = objects_module.LocalObjects.temporary

    def temporary(self):
        path, opened = real(self)
        return path, Full(opened)

    monkeypatch.setattr(objects_module.LocalObjects, "temporary", temporary)
    part = teacher_part(10, dim=size)
    file = ShardFile(objects, part, part.arrays[0], part.shards()[0])
    with pytest.raises(DiskFullError):
        file.append(np.ones((10, size), np.float16))
    file.discard()
    assert list((objects.root / "_tmp").iterdir()) == []
