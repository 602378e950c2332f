"""The order of an epoch: every row once, a function of (seed, epoch), mixed well also where it comes in blocks."""

import numpy as np
import pytest

from student import order
from student.order import available_memory, block_order, choose_shuffle, global_order

SIZES = [1, 7, 8, 9, 64, 65, 1000]


@pytest.mark.parametrize("rows", SIZES)
def test_each_position_comes_once(rows):
    for found in (
        global_order(rows, seed=1, epoch=2),
        block_order(rows, seed=1, epoch=2, block=8, group=3),
        block_order(rows, seed=1, epoch=2),
    ):
        assert found.dtype == np.int64 and sorted(found.tolist()) == list(range(rows))


@pytest.mark.parametrize("make", [global_order, block_order])
def test_the_order_is_a_function_of_seed_and_epoch(make):
    first = make(5000, seed=3, epoch=4).tolist()
    assert first == make(5000, seed=3, epoch=4).tolist()
    assert first != make(5000, seed=3, epoch=5).tolist() and first != make(5000, seed=4, epoch=4).tolist()


def test_a_group_holds_whole_blocks_and_only_those():
    found = block_order(10 * 8 + 3, seed=0, epoch=0, block=8, group=4)
    sizes = np.bincount(found // 8)
    assert sizes.tolist() == [8] * 10 + [3]
    at = 0
    while at < len(found):
        blocks = set()
        while at < len(found) and (len(blocks) < 4 or found[at] // 8 in blocks):
            blocks.add(found[at] // 8)
            at += 1
        group = found[at - sum(sizes[block] for block in blocks) : at]
        assert {position // 8 for position in group} == blocks


def test_blocks_are_scattered_and_groups_mixed():
    """Over 400 epochs of 16 blocks of 4 in groups of 4: neighbours part, and every position comes everywhere."""
    orders = np.array([block_order(64, seed=9, epoch=epoch, block=4, group=4) for epoch in range(400)])
    places = np.argsort(orders, axis=1)  # where each position came in each epoch
    means = places.mean(axis=0)  # uniform over 0..63: mean 31.5, standard error 18.5 / 20
    assert np.abs(means - 31.5).max() < 5 * 18.5 / 20
    counts = np.histogram2d(np.tile(np.arange(64), 400), places.ravel(), bins=8)[0]  # 400 expected in each of 64
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 49 + 6 * np.sqrt(2 * 49)
    adjacent = (np.abs(np.diff(orders, axis=1)) == 1).mean()  # neighbours in a group of 16: 24 pairs in 16 * 15 / 2
    assert adjacent == pytest.approx(2 * 12 / (16 * 15) * 60 / 63, rel=0.15)


def test_two_rows_of_different_blocks_share_a_group_as_often_as_chance_says():
    together = 0
    for epoch in range(600):
        groups = np.argsort(block_order(64, seed=2, epoch=epoch, block=4, group=4)) // 16
        together += groups[0] == groups[63]
    assert together / 600 == pytest.approx(3 / 15, abs=5 * np.sqrt(0.2 * 0.8 / 600))


@pytest.mark.parametrize(
    ("wanted", "available", "found"),
    [(600, 1000, "global"), (601, 1000, "blocks"), (0, 0, "global"), (10**15, None, "global")],
)
def test_a_cache_may_fill_three_fifths_of_what_is_available(wanted, available, found):
    assert choose_shuffle(wanted, available) == found


def test_available_memory_is_that_of_the_machine_or_of_its_container(monkeypatch, tmp_path):
    found = available_memory()
    assert found is None or 2**20 < found < 2**50
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(order, "Path", {"/proc/meminfo": tmp_path / "meminfo"}.__getitem__)
    monkeypatch.setattr(order, "_CONTAINER", tmp_path)
    assert available_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("4096\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 1800\nkernel 200\n")
    assert available_memory() == 4096 - 1200
    (tmp_path / "memory.max").unlink()
    assert available_memory() == 50 * 1024
    (tmp_path / "meminfo").unlink()
    assert available_memory() is None
