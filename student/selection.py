"""Which rows train, which validate, whose labels may be seen: decided by key, the same in every run and everywhere."""

from collections.abc import Mapping, Sequence

import numpy as np

from featurecache.errors import UsageError
from featurecache.fingerprint import hash_unit
from featurecache.types import NO_LABEL

__all__ = ["first_rows", "label_map", "labelled_rows", "validation_rows"]


def validation_rows(keys: Sequence[str], fraction: float) -> np.ndarray:
    """bool (rows,): the rows held out for every choice made in training, about `fraction` of all."""
    return np.array([hash_unit("validation", key) < fraction for key in keys], bool)


def labelled_rows(keys: Sequence[str], labels: np.ndarray, count: int | None) -> np.ndarray:
    """bool (rows,): the `count` labelled rows whose keys hash lowest (all labelled rows for None).

    A larger count includes the smaller one's rows. Raises UsageError if there are fewer labels than that.
    """
    has_label = labels != NO_LABEL
    if count is None:
        return has_label
    if not 1 <= count <= np.count_nonzero(has_label):
        raise UsageError(f"cannot choose {count} labels: {np.count_nonzero(has_label)} usable rows have one")
    return _first(keys, has_label, count, preferred=has_label)


def first_rows(keys: Sequence[str], usable: np.ndarray, count: int | None, *, labelled: np.ndarray) -> np.ndarray:
    """bool (rows,): `count` of the usable rows (all for None), those with labels that may be seen first, then those
    whose keys hash lowest. `usable` and `labelled` are bool (rows,).

    A larger count includes the smaller one's rows. Raises UsageError if there are fewer rows than that.
    """
    if count is None:
        return usable
    if not 1 <= count <= np.count_nonzero(usable):
        raise UsageError(f"cannot choose {count} samples: there are {np.count_nonzero(usable)} to train on")
    return _first(keys, usable, count, preferred=labelled)


def _first(keys: Sequence[str], usable: np.ndarray, count: int, *, preferred: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(usable)
    hashes = np.array([hash_unit("labels", keys[int(row)]) for row in rows])
    order = np.lexsort((hashes, ~preferred[rows]))
    chosen = np.zeros(len(keys), bool)
    chosen[rows[order[:count]]] = True
    return chosen


def label_map(
    class_names: Sequence[str], teacher_classes: Sequence[str], given: Mapping[str, str] | None = None
) -> np.ndarray | None:
    """int64 (data classes,): the teacher's logit for each class of the data, or None if they do not correspond.

    Classes correspond by name, or as `given` says (data class -> teacher class). Without either they are never scored
    against each other. Raises UsageError for a given name that does not exist or that is left out.
    """
    index = {name: number for number, name in enumerate(teacher_classes)}
    if given is None:
        if not class_names or not all(name in index for name in class_names):
            return None
        return np.array([index[name] for name in class_names], np.int64)
    if missing := [name for name in class_names if name not in given]:
        raise UsageError(
            f"the class map leaves out {missing[0]!r}", hint="it needs an entry for every class of the data"
        )
    if unknown := [given[name] for name in class_names if given[name] not in index]:
        raise UsageError(f"the class map names {unknown[0]!r}, which is not a class of the teacher")
    return np.array([index[given[name]] for name in class_names], np.int64)
