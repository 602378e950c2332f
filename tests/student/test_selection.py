"""Rows are chosen by key: against hashes computed by hand."""

import hashlib

import numpy as np
import pytest

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.selection import first_rows, label_map, labelled_rows, validation_rows

KEYS = [f"n{number:04d}/a picture {number}.jpg" for number in range(2000)]
LABELS = np.where(np.arange(2000) % 3 == 0, NO_LABEL, np.arange(2000) % 7)


def unit(word, key):
    return int.from_bytes(hashlib.sha256(f"{word}/{key}".encode()).digest()[:8], "little") / 2**64


def test_validation_rows_are_those_whose_hash_is_below_the_fraction():
    found = validation_rows(KEYS, 0.1)
    assert found.tolist() == [unit("validation", key) < 0.1 for key in KEYS]
    assert 150 < found.sum() < 250
    assert not validation_rows(KEYS, 0.0).any()


def test_a_larger_validation_part_includes_the_smaller():
    assert (validation_rows(KEYS, 0.3) | ~validation_rows(KEYS, 0.1)).all()


def test_validation_depends_on_the_key_alone():
    order = np.random.default_rng(0).permutation(len(KEYS))
    shuffled = validation_rows([KEYS[at] for at in order], 0.2)
    assert (shuffled == validation_rows(KEYS, 0.2)[order]).all()


@pytest.mark.parametrize("count", [1, 17, 500])
def test_labelled_rows_are_those_whose_hash_is_lowest(count):
    labelled = sorted((unit("labels", KEYS[row]), row) for row in range(2000) if LABELS[row] != NO_LABEL)
    found = labelled_rows(KEYS, LABELS, count)
    assert np.flatnonzero(found).tolist() == sorted(row for _, row in labelled[:count])


def test_more_labels_include_the_fewer_in_any_order():
    order = np.random.default_rng(1).permutation(len(KEYS))
    few, many = labelled_rows(KEYS, LABELS, 50), labelled_rows(KEYS, LABELS, 60)
    assert few.sum() == 50 and many.sum() == 60 and (many | ~few).all()
    assert (labelled_rows([KEYS[at] for at in order], LABELS[order], 50) == few[order]).all()


def test_all_labels_by_default_and_never_a_row_without_one():
    assert (labelled_rows(KEYS, LABELS, None) == (LABELS != NO_LABEL)).all()
    assert (labelled_rows(KEYS, LABELS, int((LABELS != NO_LABEL).sum())) == (LABELS != NO_LABEL)).all()


@pytest.mark.parametrize("count", [0, 1334])
def test_more_labels_than_there_are_is_refused(count):
    with pytest.raises(UsageError, match=f"cannot choose {count} labels: 1333 usable rows have one"):
        labelled_rows(KEYS, LABELS, count)


@pytest.mark.parametrize("count", [1, 40, 900, 1700])
def test_samples_are_those_with_labels_that_may_be_seen_and_then_the_lowest_hashes(count):
    usable, labelled = ~validation_rows(KEYS, 0.1), labelled_rows(KEYS, LABELS, 60)
    order = sorted((not labelled[row], unit("labels", KEYS[row]), row) for row in range(2000) if usable[row])
    found = first_rows(KEYS, usable, count, labelled=labelled)
    assert np.flatnonzero(found).tolist() == sorted(row for *_, row in order[:count])


def test_more_samples_include_the_fewer_in_any_order():
    order = np.random.default_rng(1).permutation(len(KEYS))
    usable, labelled = ~validation_rows(KEYS, 0.1), labelled_rows(KEYS, LABELS, 60)
    few, many = (first_rows(KEYS, usable, count, labelled=labelled) for count in (50, 700))
    assert few.sum() == 50 and many.sum() == 700 and (many | ~few).all()
    assert (labelled | ~few).all() and (many | ~(labelled & usable)).all()
    shuffled = first_rows([KEYS[at] for at in order], usable[order], 50, labelled=labelled[order])
    assert (shuffled == few[order]).all()


def test_more_samples_than_there_are_is_refused():
    usable = np.arange(2000) < 7
    assert first_rows(KEYS, usable, None, labelled=~usable) is usable
    assert (first_rows(KEYS, usable, 7, labelled=~usable) == usable).all()
    for count in (0, 8):
        with pytest.raises(UsageError, match=f"cannot choose {count} samples: there are 7 to train on"):
            first_rows(KEYS, usable, count, labelled=~usable)


def test_the_choice_of_labels_tells_nothing_of_validation():
    held_out, seen = validation_rows(KEYS, 0.5), labelled_rows(KEYS, LABELS, 600)
    assert 250 < (held_out & seen).sum() < 350


def test_classes_correspond_by_name():
    assert label_map(["b", "a"], ["x", "a", "b"]).tolist() == [2, 1]
    assert label_map(["b", "c"], ["x", "a", "b"]) is None
    assert label_map(["b"], []) is None
    assert label_map([], ["a"]) is None


def test_a_given_class_map_wins():
    assert label_map(["b", "a"], ["x", "a", "b"], {"a": "x", "b": "a", "unused": "y"}).tolist() == [1, 0]
    with pytest.raises(UsageError, match="the class map leaves out 'a'"):
        label_map(["b", "a"], ["x"], {"b": "x"})
    with pytest.raises(UsageError, match="names 'y', which is not a class of the teacher"):
        label_map(["b"], ["x"], {"b": "y"})
