"""Batches read ahead into buffers that are used again: the same rows as one by one, in memory of their own."""

import itertools
import threading
import time
from unittest import mock

import numpy as np
import pytest
import torch

from featurecache.errors import CorruptCacheError, IncompleteError, UnknownNameError, UsageError
from featurecache.store import gather as gathering
from featurecache.store.layout import REASON, VALID, EncodedOutput, PartSpec
from featurecache.store.reader import open_cache
from featurecache.store.view_parts import ViewParts
from featurecache.store.writer import create_cache
from featurecache.types import ArraySpec, OutputSpec, SparseLogits
from tests.store.small_parts import add_probe, rows_identity, teacher_part, write_part, write_rows

ROWS = 2500


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Two teachers: "embedding" as float32, a probe on it, and "logits" as the two largest of 65,536."""
    objects = create_cache(tmp_path_factory.mktemp("gathered"), source={})
    write_rows(objects, rows=ROWS)
    write_part(objects, part_of("dense", [ArraySpec("embedding", "float32", (4,), ("feature",))], "embedding", 4))
    sparse = [
        ArraySpec("logits.values", "float16", (2,), ("rank",)),
        ArraySpec("logits.indices", "uint16", (2,), ("rank",)),
        ArraySpec("logits.logsumexp", "float32", (1,), ("temperature",)),
    ]
    write_part(objects, part_of("sparse", sparse, "logits", 2**16, "topk:2@3"))
    add_probe(objects, "probe", 1, teacher="id-dense", rows=ROWS)
    return open_cache(objects.root)


def part_of(name, arrays, output, width, encoding="float32"):
    return PartSpec(
        name=name,
        kind="teacher",
        split="train",
        rows=ROWS,
        identity={"kind": "teacher", "data": rows_identity(ROWS), "recipe": name},
        arrays=(*arrays, VALID, REASON),
        views=(0, 1),
        outputs=(EncodedOutput(OutputSpec(output, (width,)), encoding),),
        facts={"teacher": name, "teacher_id": f"id-{name}", "input": {}},
    )


@pytest.fixture
def ahead(request, monkeypatch):
    """Whether batches are read by the thread, whatever their size."""
    monkeypatch.setattr(gathering, "_INLINE_BYTES", 0 if request.param else 10**9)


def plan(sizes=(7, 7, 0, 64, 1, 7), seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, ROWS, size) for size in sizes]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("gather")]


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, ours in left.items():
        theirs = right[name]
        if isinstance(ours, SparseLogits):
            assert (ours.size, ours.temperatures) == (theirs.size, theirs.temperatures)
            for field in ("values", "indices", "logsumexp"):
                torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), rtol=0, atol=0)
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("ahead", [False, True], indirect=True)
@pytest.mark.parametrize("outputs", [None, ["embedding"], ["logits", "embedding"], ["sparse/logits"], []])
def test_every_batch_is_what_read_gives(cache, ahead, outputs):
    reader = cache.split()
    batches = plan()
    found = list(reader.gather(batches, outputs=outputs))  # kept: no later batch may change an earlier one
    assert len(found) == len(batches)
    for rows, ours in zip(batches, found, strict=True):
        assert_same(ours, reader.read(rows, outputs=outputs))


@pytest.mark.parametrize("ahead", [True], indirect=True)
def test_at_most_three_batches_are_under_way(cache, ahead):
    asked = []

    def counted():
        for rows in plan([5] * 10):
            asked.append(len(rows))
            yield rows

    stream = cache.split().gather(counted(), outputs=["embedding"])
    assert asked == []
    for given in range(1, 8):
        next(stream)
        assert len(asked) == given + 2
    assert len(threads()) == 1


def test_small_batches_need_no_thread(cache):
    stream = cache.split().gather(plan([100] * 5))
    next(stream)
    assert threads() == []


@pytest.mark.parametrize("ahead", [True], indirect=True)
@pytest.mark.parametrize("end", ["dropped", "closed", "used up"])
def test_the_thread_ends_with_the_iterator(cache, ahead, end):
    stream = cache.split().gather(plan([5] * 6))
    next(stream)
    assert threads()
    if end == "dropped":
        del stream
    elif end == "closed":
        stream.close()
    else:
        list(stream)
    until = time.monotonic() + 5
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() == []


@pytest.mark.parametrize("ahead", [False, True], indirect=True)
def test_errors_come_with_the_batch_that_has_them(cache, ahead):
    stream = cache.split().gather([np.array([1]), np.array([2]), np.array([ROWS]), np.array([3])])
    assert len(next(stream)["embedding"]) == len(next(stream)["embedding"]) == 1
    with pytest.raises(UsageError, match="has rows 0 to 2,499"):
        next(stream)
    assert threads() == []


@pytest.mark.parametrize("ahead", [False, True], indirect=True)
def test_damage_and_holes_are_found_while_reading_ahead(objects, ahead):
    write_rows(objects, rows=2500)
    part = teacher_part(2500)
    write_part(objects, part, skip={(0, 2)})
    path = objects.path("train/vit/embedding/c/0/1/0")
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    reader = open_cache(objects.root).split()
    for bad, error in ((1024, CorruptCacheError), (2499, IncompleteError)):
        stream = reader.gather([np.array([0]), np.array([1, bad])])
        next(stream)
        with pytest.raises(error):
            next(stream)


@pytest.mark.parametrize("ahead", [False, True], indirect=True)
def test_a_plan_that_fails_fails_the_reading(cache, ahead):
    def broken():
        yield np.array([0])
        raise OSError("the plan")

    with pytest.raises(OSError, match="the plan"):
        list(cache.split().gather(broken()))
    assert threads() == []


def test_what_cannot_be_read_is_said_at_once(cache):
    with pytest.raises(UnknownNameError, match="embedding"):
        cache.split().gather([], outputs=["embeding"])


def test_buffers_wait_for_their_copy_to_the_device():
    """The event of a CUDA device, without one: no buffer is filled before the copy out of it is done."""
    copied = mock.create_autospec(torch.cuda.Event, instance=True)
    buffers = gathering._Buffers({}, pinned=False)
    buffers.fill((np.arange(3), 0))
    buffers.free_after(copied)
    assert not copied.synchronize.called
    buffers.fill((np.arange(3), 0))
    assert copied.synchronize.called


def test_a_set_of_buffers_is_used_again(cache):
    reader = cache.split()
    arrays = {"e": (ViewParts([reader.teachers["dense"]]), reader.teachers["dense"].part.array("embedding"))}
    buffers = gathering._Buffers(arrays, pinned=False)
    places = [buffers.fill((np.arange(size), 0))["e"].data_ptr() for size in (50, 20, 50, 1)]
    assert len(set(places)) == 1
    assert len(buffers.fill((np.arange(60), 0))["e"]) == 60


def test_stored_bytes_count_each_array_once(cache):
    reader = cache.split()
    assert reader.stored_bytes(["embedding"]) == ROWS * 16 == reader.stored_bytes(["embedding", "logits"])
    assert reader.stored_bytes(["sparse/logits"]) == ROWS * (4 + 4 + 4)
    assert reader.stored_bytes([]) == 0


def test_read_decodes_where_it_is_told(cache):
    found = cache.split().read([1, 2], device="meta")
    assert {name: value.device.type for name, value in found.items() if name != "sparse/logits"} == {
        "embedding": "meta",
        "logits": "meta",
    }


def test_endless_plans(cache):
    rows = itertools.repeat(np.arange(3))
    assert len(list(itertools.islice(cache.split().gather(rows, outputs=["embedding"]), 50))) == 50
