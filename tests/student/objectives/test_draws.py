"""Random bits from what they are for: the same in any order, even, and unlike those of other rows and steps."""

import numpy as np
import pytest
import torch

from student.objectives.draws import random_bits

SEED, STEP = torch.tensor(3), torch.tensor(17)


def mixed_by_hand(x):
    x ^= x >> 16
    x = x * 0x21F0AAAD % 2**32
    x ^= x >> 15
    x = x * 0x735A2D97 % 2**32
    return x ^ x >> 15


def test_bits_are_those_of_unbounded_integers():
    rows = [0, 5, 2**31 - 1]
    expected = [
        [mixed_by_hand(mixed_by_hand(row ^ mixed_by_hand(17 ^ mixed_by_hand(3))) ^ mixed_by_hand(k)) for k in range(4)]
        for row in rows
    ]
    assert random_bits(SEED, STEP, torch.tensor(rows), 4).tolist() == expected


def test_a_row_has_its_bits_wherever_it_stands():
    rows = torch.tensor([4, 9, 4, 1])
    bits = random_bits(SEED, STEP, rows, 6)
    assert torch.equal(bits[0], bits[2])
    assert torch.equal(random_bits(SEED, STEP, rows.flip(0), 6), bits.flip(0))
    assert torch.equal(random_bits(SEED, STEP, rows[1:2], 3), bits[1:2, :3])


def test_bits_are_even_and_uncorrelated():
    bits = random_bits(SEED, STEP, torch.arange(64), 4096).numpy()
    assert bits.min() >= 0 and bits.max() < 2**32
    counts = np.bincount((bits >> 24).ravel(), minlength=256)
    assert ((counts - 1024) ** 2 / 1024).sum() == pytest.approx(255, abs=5 * np.sqrt(2 * 255))  # chi squared
    other_step = random_bits(SEED, STEP + 1, torch.arange(64), 4096).numpy()
    other_seed = random_bits(SEED + 1, STEP, torch.arange(64), 4096).numpy()
    for left, right in [(bits[:-1], bits[1:]), (bits[:, :-1], bits[:, 1:]), (bits, other_step), (bits, other_seed)]:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / np.sqrt(left.size)
