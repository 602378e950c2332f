"""Two writers of one shard, in every order in which they could race."""

import math
import random
import shutil

import numpy as np
import pytest

from featurecache.store.layout import Shard
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.writer import CacheWriter, create_cache
from featurecache.types import Reason
from tests.crash.checks import content_of, faults_in, files_of, records_in
from tests.crash.small_run import PART, write_all
from tests.crash.turns import all_orders, run_in_turns
from tests.store.small_parts import values_of

SHARD = PART.shards()[1]
EVERYTHING = {"create", "write", "fsync", "chmod", "mkdir", "link", "unlink", "sync"}


def the_same():
    return values_of(PART, SHARD)


def another_last_bit():
    rows = values_of(PART, SHARD)
    return {**rows, "embedding": (rows["embedding"].view(np.uint16) ^ 1).view(np.float16)}


def another_row_not_finite():
    rows = values_of(PART, SHARD)
    rows["embedding"][5], rows["valid"][5], rows["reason"][5] = np.nan, 0, Reason.NOT_FINITE
    return rows


@pytest.fixture
def race(folder):
    """Two writers, each with its own rows, commit one shard in an order; what is found is checked."""
    empty = folder / "empty"
    CacheWriter(create_cache(empty, source={}), PART)

    def run(rows, choose, kinds, *, shard: Shard = SHARD):
        root = folder / "cache"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(empty, root)
        writers = [CacheWriter(LocalObjects(root), PART).open(shard) for _ in rows]  # as two processes would
        for writer, values in zip(writers, rows, strict=True):
            writer.append(values)
        choices = run_in_turns(root, [writer.commit for writer in writers], choose, kinds=kinds)
        check(root, rows)
        return choices

    return run


def check(root, rows):
    files = files_of(root)
    assert faults_in(files) == [] and list((root / "_tmp").iterdir()) == []
    (record,) = records_in(files).values()
    found = PartReader(LocalObjects(root), PART)
    for array in PART.arrays:
        standing = found.take(array, np.arange(SHARD.start, SHARD.stop))
        assert any(standing.tobytes() == np.ascontiguousarray(values[array.name]).tobytes() for values in rows)
        if array.name == "reason":
            bad = int((standing == Reason.NOT_FINITE).sum())
            assert record["invalid"] == ({"NOT_FINITE": bad} if bad else {})


@pytest.mark.parametrize("other", [the_same, another_last_bit, another_row_not_finite])
def test_every_order_of_giving_names(race, other):
    count = all_orders(lambda choose: race([the_same(), other()], choose, {"link"}))
    assert count == math.comb(8, 4)  # each writer links three arrays and a record


def test_orders_of_all_operations_by_chance(race, kills):
    chance = random.Random(0)
    lengths = {len(race([the_same(), another_last_bit()], chance.choice, EVERYTHING)) for _ in range(2 * kills)}
    assert min(lengths) > 50


def test_three_writers_by_chance(race, kills):
    chance = random.Random(1)
    rows = [the_same(), another_last_bit(), another_row_not_finite()]
    for _ in range(kills):
        race(rows, chance.choice, {"link", "mkdir", "sync"})


def test_two_whole_runs_from_nothing(folder, kills):
    write_all(folder / "alone")
    whole = content_of(files_of(folder / "alone"))
    chance = random.Random(2)
    for _ in range(kills):
        root = folder / "cache"
        run_in_turns(root, [lambda root=root: write_all(root)] * 2, chance.choice, kinds=EVERYTHING)
        found = content_of(files_of(root))
        assert {name: data for name, data in found.items() if not name.startswith("seals/")}.items() <= whole.items()
        assert found.keys() >= whole.keys() and faults_in(files_of(root)) == []
        shutil.rmtree(root)
