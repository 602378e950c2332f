"""Random numbers: of an identity, of 53 bits, and written down."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.augment.randomness import uniforms


def test_the_first_numbers_are_what_they_always_were() -> None:
    # written down once: other numbers would be other views of every cache there is
    assert uniforms(["cat/001.jpg"], seed=0, view=1, count=3).tolist() == [
        [0.3635703138576796, 0.8764957053292072, 0.9108558506645257]
    ]
    assert uniforms(["cat/001.jpg"], seed=0, view=2, count=1).tolist() == [[0.8626904624020642]]
    assert uniforms(["cat/001.jpg"], seed=1, view=1, count=1).tolist() == [[0.7905689877954675]]


def philox_4x64(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds as Salmon and others published them, in Python's whole numbers."""
    mask = 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ key[0],
            second & mask,
            (first >> 64) ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_the_bits_are_philox_of_the_hash() -> None:
    digest = hashlib.sha256(b"7/some key").digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    expected = [word for block in (1, 2) for word in philox_4x64([block, 0, 3, 5], key)]
    found = uniforms(["some key"], seed=7, view=5, count=8, stream=3)[0]
    assert [int(number * 2**53) for number in found] == [word >> 11 for word in expected]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 2**31), st.data())
def test_a_row_depends_on_its_own_key(keys: list[str], count: int, view: int, data: st.DataObject) -> None:
    everything = uniforms(keys, seed=3, view=view, count=count)
    order = data.draw(st.permutations(range(len(keys))))
    assert np.array_equal(uniforms([keys[at] for at in order], seed=3, view=view, count=count), everything[order])
    alone = [uniforms([key], seed=3, view=view, count=count)[0] for key in keys]
    assert np.array_equal(np.array(alone), everything)
    assert np.array_equal(uniforms(keys, seed=3, view=view, count=count + 5)[:, :count], everything)


@pytest.mark.parametrize(("view", "stream"), [(1, 0), (2, 0), (1, 1)])
def test_they_are_even(view: int, stream: int) -> None:
    found = np.sort(uniforms([str(number) for number in range(4000)], seed=5, view=view, count=5, stream=stream), 0)
    even = (np.arange(4000) + 0.5) / 4000
    assert np.abs(found - even[:, None]).max() < 1.95 / np.sqrt(4000)  # Kolmogorov and Smirnov, 0.1 %
    assert found.min() >= 0 and found.max() < 1


def test_views_streams_and_seeds_share_nothing() -> None:
    rows = [
        uniforms(["key"], seed=seed, view=view, count=50, stream=stream)
        for seed in (0, 1)
        for view in (0, 1, 2)
        for stream in (0, 1)
    ]
    assert np.unique(np.concatenate(rows)).size == 50 * len(rows)
