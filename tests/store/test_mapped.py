import gc
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import CorruptCacheError, FeatureCacheError
from featurecache.store import mapped
from featurecache.store.mapped import map_shards

PAGE = mmap.PAGESIZE


def shards(folder, *sizes):
    """Files of random bytes, each some bytes longer than what is asked for."""
    rng = np.random.default_rng(0)
    files = {}
    for slot, size in enumerate(sizes):
        if size:
            path = folder / str(slot)
            path.write_bytes(rng.bytes(size + 20))
            files[slot] = path, size
    return files


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("slot_bytes", [PAGE, 3 * PAGE, 1000, PAGE + 1])
def test_each_file_lies_at_its_slot(tmp_path, slot_bytes):
    files = shards(tmp_path, slot_bytes, 0, slot_bytes, slot_bytes // 2)
    array = map_shards(files, slots=5, slot_bytes=slot_bytes)
    assert array.shape == (5 * slot_bytes,) and array.dtype == np.uint8
    for slot, (path, size) in files.items():
        assert array[slot * slot_bytes :][:size].tobytes() == path.read_bytes()[:size]
    assert not array[slot_bytes : 2 * slot_bytes].any() and not array[4 * slot_bytes :].any()
    assert is_mapped(tmp_path / "0") == (slot_bytes % PAGE == 0)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_mapped_and_loaded_are_the_same(tmp_path):
    files = shards(tmp_path, 2 * PAGE, PAGE, 2 * PAGE)
    where = {slot: (slot, size) for slot, (_, size) in files.items()}
    one = mapped._mapped(files, 8 * PAGE, 2 * PAGE)
    two = mapped._loaded(files, 8 * PAGE, 2 * PAGE)
    for slot, size in where.values():
        chosen = slice(slot * 2 * PAGE, slot * 2 * PAGE + size)
        assert (one[chosen] == two[chosen]).all()


def test_the_mapping_lives_as_long_as_any_view_of_it(tmp_path):
    files = shards(tmp_path, 4 * PAGE, 4 * PAGE)
    expected = (tmp_path / "1").read_bytes()[8:16]

    def last_bytes():
        return map_shards(files, slots=2, slot_bytes=4 * PAGE).view("<i8").reshape(-1, 2)[PAGE // 4 :][0, 1:]

    view = last_bytes()
    gc.collect()
    assert is_mapped(tmp_path / "1") and view.tobytes() == expected
    del view
    gc.collect()
    assert not is_mapped(tmp_path / "0") and not is_mapped(tmp_path / "1")


@pytest.mark.parametrize("slot_bytes", [PAGE, 1000])
@pytest.mark.parametrize("damage", ["missing", "short", "link"])
def test_damaged_files_are_refused_before_they_are_touched(tmp_path, slot_bytes, damage):
    files = shards(tmp_path, slot_bytes, slot_bytes)
    path = files[1][0]
    data = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(data[: slot_bytes - 1])
    if damage == "link":
        path.symlink_to(files[0][0])
    with pytest.raises(CorruptCacheError, match=str(path)):
        map_shards(files, slots=2, slot_bytes=slot_bytes)
    gc.collect()
    assert not is_mapped(tmp_path / "0")


def test_more_than_there_are_addresses(tmp_path):
    with pytest.raises(FeatureCacheError, match="cannot map"):
        map_shards({}, slots=2**36, slot_bytes=2**26)


def test_advice_names_whole_pages(tmp_path, monkeypatch):
    array = map_shards(shards(tmp_path, 4 * PAGE, 4 * PAGE), slots=2, slot_bytes=4 * PAGE).reshape(-1, 16)
    told = []

    class System:
        def madvise(self, *advice):
            told.append(advice)

    monkeypatch.setattr(mapped, "_libc", System)
    start = array.ctypes.data
    mapped.will_need(array, 0, 10)
    mapped.will_need(array, PAGE // 16 + 1, PAGE // 16 + 3)
    mapped.will_need(array, 5, 5)
    assert told == [(start, 160, 3), (start + PAGE, 48, 3)]


@pytest.mark.skipif(sys.platform != "linux", reason="what is resident is asked of /proc")
def test_advised_rows_come_from_the_disk(tmp_path):
    files = shards(tmp_path, 2**21, 2**21)
    for path, _ in files.values():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    array = map_shards(files, slots=2, slot_bytes=2**21)
    assert array.ctypes.data % 2**21 == 0
    mapped.will_need(array, 0, len(array))
    assert array[: 2**21].tobytes() == (tmp_path / "0").read_bytes()[: 2**21]


def test_more_shards_than_there_is_memory_for(tmp_path):
    files = shards(tmp_path, 1000)
    with pytest.raises(CorruptCacheError, match=r"said to be one of 1,099,511,627,776 shards"):
        map_shards(files, slots=2**40, slot_bytes=1000)
