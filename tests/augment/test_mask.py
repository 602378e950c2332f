"""Corrupted texts: which tokens, how many, and what stands in their place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.augment import Augmentation, TokenAugmentation, augmentation_from_json
from featurecache.augment.mask import chosen, corrupt
from featurecache.errors import UsageError

START, END, MASK = 101, 102, 103
SPECIAL = (0, START, END, MASK)


def make(**options: object) -> TokenAugmentation:
    given = {"mask_id": MASK, "vocabulary": 1000, "special_ids": SPECIAL, "max_length": 32, **options}
    return TokenAugmentation(**given)  # type: ignore[arg-type]


def text(length: int, *, seed: int = 0) -> np.ndarray:
    """int64 (length + 2,): ordinary tokens between two special ones."""
    return np.concatenate([[START], np.random.default_rng(seed).integers(200, 1000, length), [END]])


def test_it_is_an_augmentation() -> None:
    mask = make()
    assert isinstance(mask, Augmentation)
    assert (mask.name, mask.version, mask.modality) == ("mask", 1, "text")
    assert mask.parameters[:3] == ("position.1", "token.1", "position.2") and len(mask.parameters) == 2 * 5
    assert corrupt([5, 6, 7], mask.plain) == [5, 6, 7] and mask.accepts(mask.plain[None])
    assert corrupt([5, 6, 7], np.zeros(0, np.float32)) == [5, 6, 7]


@pytest.mark.parametrize(("ordinary", "count"), [(0, 0), (1, 1), (3, 1), (10, 2), (20, 3), (30, 4)])
def test_a_share_of_the_ordinary_tokens_is_chosen(ordinary: int, count: int) -> None:
    # round(0.15 * 10) = round(1.5) = 2, to even; 0.15 * 30 = 4.5, to even 4
    ids = text(ordinary)
    found = make().draw(["key"], [ids], view=1, seed=0)[0]
    positions = chosen(found)
    assert len(positions) == count and (np.diff(positions) > 0).all()
    assert all(1 <= position <= ordinary for position in positions)
    assert (found[2 * count :] == -1).all()


def test_longer_texts_are_masked_in_what_is_seen_of_them() -> None:
    found = make().draw(["a", "b"], [text(500), text(3)], view=1, seed=0)
    assert chosen(found[0]).size == 5 and chosen(found[0]).max() < 32


def test_eighty_ten_ten() -> None:
    count = 4000
    mask = make()
    texts = [text(30, seed=number) for number in range(count)]
    drawn = mask.draw([f"key {number}" for number in range(count)], texts, view=2, seed=0)
    assert drawn.shape == (count, 10) and drawn.dtype == np.float32 and mask.accepts(drawn)
    pairs = drawn.astype(int).reshape(count, -1, 2)
    before = np.array([ids[row[:4, 0]] for ids, row in zip(texts, pairs, strict=True)])
    after = pairs[:, :4, 1]
    hidden, kept = (after == MASK).mean(), (after == before).mean()
    bound = 4 * np.sqrt(0.25 / before.size)
    assert abs(hidden - 0.8) < bound and abs(kept - 0.1 - 0.1 / 996) < bound
    other = after[(after != MASK) & (after != before)]
    assert not np.isin(other, SPECIAL).any()
    # every ordinary token is as likely, those below 200 too, which the texts do not have
    assert abs((other < 200).mean() - 196 / 996) < 4 * np.sqrt(0.2 / other.size)
    positions = np.bincount(pairs[:, :4, 0].ravel(), minlength=32)[1:31]
    assert np.abs(positions - before.size / 30).max() < 4 * np.sqrt(before.size / 30)


def test_the_corrupted_text_has_the_tokens_in_place() -> None:
    ids = text(20).tolist()
    parameters = make().draw(["key"], [np.array(ids)], view=1, seed=4)[0]
    after = corrupt(ids, parameters)
    tokens = parameters[1::2]
    for position in range(22):
        at = chosen(parameters).tolist()
        assert after[position] == (tokens[at.index(position)] if position in at else ids[position])
    assert corrupt(ids[:3], parameters) == [
        after[position] if position in chosen(parameters) else ids[position] for position in range(3)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 40)), min_size=1, max_size=6), st.data())
def test_a_draw_depends_on_its_own_key(texts: list[tuple[str, int]], data: st.DataObject) -> None:
    mask, keys = make(), [key for key, _ in texts]
    ids = [text(length, seed=length) for _, length in texts]
    everything = mask.draw(keys, ids, view=3, seed=1)
    order = data.draw(st.permutations(range(len(keys))))
    other = mask.draw([keys[at] for at in order], [ids[at] for at in order], view=3, seed=1)
    assert np.array_equal(other, everything[order])
    assert np.array_equal(mask.draw(keys[:1], ids[:1], view=3, seed=1), everything[:1])


def test_views_differ_and_are_what_they_always_were() -> None:
    mask, ids = make(), np.arange(200, 232)
    first, second = (mask.draw(["key"], [ids], view=view, seed=0)[0] for view in (1, 2))
    assert not np.array_equal(first, second)
    assert first.tolist() == [3, 103, 11, 103, 23, 103, 26, 584, 31, 276]


def test_accepts_only_what_may_be_drawn() -> None:
    mask = make()
    good = np.array([[3, 999, 5, 0, 31, 7, -1, -1, -1, -1]], np.float32)
    assert mask.accepts(good)
    for column, number in ((0, 32), (0, -2), (1, 1000), (1, -1), (0, -1), (2, 0.5), (3, np.nan), (6, np.inf), (7, 4)):
        bad = good.copy()
        bad[0, column] = number
        assert not mask.accepts(bad)


def test_the_largest_token_is_exact() -> None:
    mask = make(vocabulary=2**24, masked=0.0, random=0.0)
    ids = np.arange(2**24 - 10, 2**24)
    drawn = mask.draw(["key"], [ids], view=1, seed=0)[0]
    assert all(ids[position] == token for position, token in drawn.astype(int).reshape(-1, 2) if position >= 0)


def test_proofs_and_json() -> None:
    mask = make()
    assert augmentation_from_json(mask.to_json()) == mask
    assert mask.proof() == make().proof()
    others = [make(share=0.2), make(masked=0.7), make(random=0.2), make(vocabulary=999), make(special_ids=(0,))]
    assert len({mask.proof(), *(other.proof() for other in others)}) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"share": 1.1},
        {"share": -0.1},
        {"masked": 0.95},
        {"random": 0.3},
        {"vocabulary": 2**24 + 1},
        {"vocabulary": 103},
        {"mask_id": 1000},
        {"special_ids": (1000,)},
        {"special_ids": tuple(range(1000))},
        {"max_length": 0},
        {"max_length": 2**20},
    ],
)
def test_numbers_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make(**options)


def test_every_ordinary_token_is_drawn_and_no_other() -> None:
    mask = make(vocabulary=9, mask_id=3, special_ids=(3, 0, 5, 5), max_length=2000, share=1.0, masked=0.0, random=1.0)
    found = mask.draw(["key"], [np.ones(2000, np.int64)], view=1, seed=0)[0, 1::2]
    assert np.unique(found).tolist() == [1, 2, 4, 6, 7, 8]
