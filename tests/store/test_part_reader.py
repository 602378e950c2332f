"""Arrays of a part: the same values as Zarr reads, checked when first touched, into buffers or new memory."""

from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache.errors import CorruptCacheError, IncompleteError, UsageError
from featurecache.store.gather import _Buffers
from featurecache.store.layout import REASON, VALID
from featurecache.store.part_reader import PartReader
from featurecache.store.view_parts import ViewParts
from featurecache.store.writer import CacheWriter
from featurecache.types import ArraySpec
from tests.store.small_parts import teacher_part, write_part, write_rows

DTYPES = ("float32", "float16", "uint8", "uint16", "uint64", "int32", "int64")


MANY = (
    ArraySpec("wide", "float32", (5, 300), ("a", "b")),  # several inner chunks in a shard
    *(ArraySpec(f"flat-{dtype}", dtype) for dtype in DTYPES),
    ArraySpec("pairs", "int64", (2,)),
    VALID,
    REASON,
)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three views of 2,500 rows in every dtype: the part, its model, and Zarr's own reading of it."""
    from featurecache.store.writer import create_cache

    objects = create_cache(tmp_path_factory.mktemp("many"), source={})
    part = teacher_part(2500, views=(4, 7), arrays=MANY)
    model = write_part(objects, part)
    return objects, part, model


@pytest.mark.parametrize("array", MANY, ids=lambda array: array.name)
def test_whole_arrays_equal_the_model_and_zarr(many, array):
    objects, part, model = many
    by_zarr = zarr.open_group(objects.root, mode="r")[f"train/vit/{array.name}"]
    assert by_zarr.shape == (3, 2500, *array.shape) and by_zarr.dtype == array.dtype
    reader = PartReader(objects, part)
    for view in range(3):
        ours = reader.whole(array.name, view=4 + view)
        assert ours.dtype == array.dtype
        np.testing.assert_array_equal(ours, model[array.name][view])
        np.testing.assert_array_equal(by_zarr[view], model[array.name][view])


@given(rows=st.lists(st.integers(0, 2499), max_size=50), view=st.integers(4, 6), trust=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_rows_in_any_order_equal_the_model(many, rows, view, trust):
    objects, part, model = many
    index = np.array(rows, np.int64)
    reader = PartReader(objects, part, trust=trust)
    for array in MANY[:3]:
        found = reader.take(array, index, view=view)
        np.testing.assert_array_equal(found, model[array.name][view - 4][index])
        assert found.flags.writeable


def test_every_flipped_byte_of_the_rows_is_found_when_it_is_touched(objects):
    part = teacher_part(6)
    write_part(objects, part)
    (record,) = PartReader(objects, part).records.values()
    path = objects.path(record.payloads[0].key)
    path.chmod(0o644)
    good = path.read_bytes()
    rows = np.arange(6)
    for at in range(6 * 8):
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(CorruptCacheError, match="rows 0 to 5 of train/vit/embedding are not what was committed"):
            PartReader(objects, part).take(part.arrays[0], rows)
        PartReader(objects, part, trust=True).take(part.arrays[0], rows)
    path.write_bytes(good)
    PartReader(objects, part).take(part.arrays[0], rows)


def test_only_touched_chunks_are_checked(many, tmp_path):
    objects, part, _ = many
    path = objects.path("train/vit/wide/c/1/2/0/0")  # 452 rows of 6,000 bytes; 64 rows in a chunk
    good = path.read_bytes()
    path.chmod(0o644)
    try:
        path.write_bytes(good[:-100_000] + bytes([good[-100_000] ^ 1]) + good[-99_999:])
        reader = PartReader(objects, part)
        reader.take(MANY[0], np.array([2048, 2111]), view=5)
        with pytest.raises(CorruptCacheError, match=r"rows 2,496 to 2,499 of train/vit/wide \(view slot 1\)"):
            reader.take(MANY[0], np.array([2048, 2499]), view=5)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("offsets", [[0, 10**6], [-1, 2], [5, 2], [0, 2**62], [2**40, 2**40 + 1]])
def test_hostile_offsets(objects, offsets):
    part = write_rows(objects)
    with pytest.raises(CorruptCacheError):
        PartReader(objects, part).elements("key_text", np.array([offsets]))


def test_offsets_into_what_is_not_there(objects):
    part = teacher_part(20, views=None, arrays=(ArraySpec("text", "uint8", longest=2**19), VALID))
    part = replace(part, kind="inputs", outputs=(), facts={"proof": "of a text"})
    writer = CacheWriter(objects, part)
    (shard,) = writer.pending()
    writer.write(shard, {"text": np.ones(3, np.uint8), "valid": np.ones(20, np.uint8)})
    reader = PartReader(objects, part)
    assert reader.elements("text", np.array([[1, 3]]))[0].tolist() == [1, 1]
    with pytest.raises(IncompleteError):
        reader.elements("text", np.array([[2**19 - 1, 2**19 + 1]]))


def test_a_buffer_is_filled_and_filled_again(many):
    objects, part, model = many
    reader = PartReader(objects, part)
    for array in (MANY[0], MANY[2], VALID):
        out = np.empty((300, *array.shape), array.dtype)
        for view, first in ((4, 0), (6, 900), (4, 2200)):
            rows = np.arange(first, first + 300)[::-1]
            assert reader.take(array, rows, view=view, out=out) is out
            np.testing.assert_array_equal(out, model[array.name][view - 4][rows])
        assert reader.take(array, np.arange(0), out=out[:0], view=5).shape == (0, *array.shape)


@pytest.mark.parametrize("row", [-1, 2500, 3071, 2**40, -(2**62), 2**63 - 1])
def test_no_row_beyond_the_last_is_ever_taken(many, row):
    objects, part, _ = many  # 2,500 rows in shards of 1,024: the last one has room for 572 more
    for trust in (False, True):
        reader = PartReader(objects, part, trust=trust)
        with pytest.raises(UsageError, match="has rows 0 to 2,499, not all that were asked for"):
            reader.take(MANY[1], np.array([5, row]), view=5)


def counting_checksums(monkeypatch):
    import google_crc32c

    calls = []
    value = google_crc32c.value
    monkeypatch.setattr(google_crc32c, "value", lambda data: (calls.append(len(data)), value(data))[1])
    return calls


def test_each_chunk_is_checked_once(many, monkeypatch):
    objects, part, _ = many
    calls = counting_checksums(monkeypatch)
    reader = PartReader(objects, part)
    for _ in range(2):
        for view in (4, 5, 6):
            reader.take(MANY[0], np.arange(2500), view=view)
    assert sorted(calls) == [64] * 3 * 40  # 64 rows in a chunk; the last one of a view is padded
    assert reader._mapped("wide")._all_checked
    PartReader(objects, part, trust=True).take(MANY[0], np.arange(2500), view=4)
    assert len(calls) == 120


def test_a_part_with_holes_is_never_all_checked(objects):
    part = teacher_part(2500, views=(0, 2))
    write_part(objects, part, skip={(1, 1)})
    for trust in (False, True):
        reader = PartReader(objects, part, trust=trust)
        embedding = part.arrays[0]
        reader.take(embedding, np.arange(2500), view=0)
        reader.take(embedding, np.arange(1024), view=1)
        with pytest.raises(IncompleteError, match=r"rows 1,024 to 2,047 of train/vit/embedding \(view slot 1\)"):
            reader.take(embedding, np.array([1500]), view=1)


def test_what_is_needed_soon_is_asked_for_in_runs_of_whole_chunks(many, monkeypatch):
    objects, part, _ = many
    asked = []
    monkeypatch.setattr("featurecache.store.part_reader.will_need", lambda values, *rows: asked.append(rows))
    reader = PartReader(objects, part)
    reader.will_need(MANY[0], np.array([0, 63, 64, 2499, 700]), view=5)  # 64 rows in a chunk, 3,072 in a view
    assert asked == [(3072, 3072 + 128), (3072 + 640, 3072 + 704), (3072 + 2496, 3072 + 2560)]
    reader.will_need(MANY[0], np.array([], np.int64), view=5)
    assert len(asked) == 3


def test_advice_changes_nothing(many):
    objects, part, model = many
    reader = PartReader(objects, part)
    reader.will_need(MANY[0], np.arange(2500), view=6)
    np.testing.assert_array_equal(reader.whole("wide", view=6), model["wide"][2])


@pytest.mark.parametrize("width", [2**28 - 1, 2**28])
def test_what_part_json_alone_claims_takes_no_memory(objects, width):
    """98 TiB, of which nothing is committed: neither the array nor a batch of it is made."""
    part = teacher_part(100_000, arrays=(ArraySpec("embedding", "float32", (width,), ("feature",)), VALID, REASON))
    CacheWriter(objects, part)
    reader, array = PartReader(objects, part), part.arrays[0]
    with pytest.raises(IncompleteError, match="nothing of train/vit/embedding is committed"):
        reader.take(array, np.arange(1))
    with pytest.raises(IncompleteError):
        _Buffers({"e": (ViewParts([reader]), array)}, pinned=False).fill((np.arange(100_000), 0))


def test_no_room_is_made_for_rows_that_are_not_committed(objects):
    part = teacher_part(2500, arrays=(ArraySpec("embedding", "float16", (4,), ("feature",)), VALID, REASON))
    write_part(objects, part, skip={(0, 1)})
    reader = PartReader(objects, part)
    buffers = _Buffers({"e": (ViewParts([reader]), part.arrays[0])}, pinned=False)
    assert buffers.fill((np.arange(1024), 0))["e"].shape == (1024, 4)
    room = buffers._room["e"]
    with pytest.raises(IncompleteError, match="rows 1,024 to 2,047"):
        buffers.fill((np.full(2000, 1500), 0))
    assert buffers._room["e"] is room
