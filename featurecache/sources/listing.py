"""What every source lists when it is opened: keys that are unique, and labels as indices into class names."""

import re
from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from featurecache.errors import SourceError
from featurecache.fingerprint import key_hash
from featurecache.sources.packed import Keys
from featurecache.types import NO_LABEL

__all__ = [
    "MAX_CLASSES",
    "LabelColumn",
    "check_keys",
    "find_repeated",
    "index_labels",
    "key_hashes",
    "numbers_as_indices",
]

MAX_CLASSES = 1_000_000
"""A larger integer label is taken for an identifier: names are made for every index up to the largest."""

_WHOLE_NUMBER = re.compile(r"-1|0|[1-9][0-9]*")


def check_keys(keys: Keys, place: Callable[[int], str], *, hint: str) -> None:
    """Raises SourceError where two samples share a key, or a key is not valid text; `place(index)` says where."""
    for index, key in enumerate(keys.packed):
        try:
            key.decode()
        except UnicodeDecodeError:
            raise SourceError(
                f"{place(index)}: the name {keys[index]!r} is not valid UTF-8", hint="rename it"
            ) from None
    if pair := find_repeated(keys):
        first, second = pair
        raise SourceError(f"{place(first)} and {place(second)} have the same key {keys[first]!r}", hint=hint)


def key_hashes(keys: Iterable[str]) -> np.ndarray:
    """bytes16 (keys,): `fingerprint.key_hash` of each, which can be sorted and searched."""
    buffer = bytearray()
    for key in keys:
        buffer += key_hash(key)
    return np.frombuffer(buffer, "S16")


def find_repeated(keys: Keys) -> tuple[int, int] | None:
    """Two rows with the same key, or None; by hashes of 16 bytes, since a set of strings takes ten times as much."""
    hashes = key_hashes(keys)
    in_order = np.sort(hashes)
    repeated = np.flatnonzero(in_order[1:] == in_order[:-1])
    if not repeated.size:
        return None
    first = min(int(np.flatnonzero(hashes == in_order[at])[0]) for at in repeated[:100])
    return first, int(np.flatnonzero(hashes == hashes[first])[1])


class LabelColumn:
    """The labels of a source as they are read: each distinct one is kept once, and a row is its number."""

    def __init__(self, labels: Iterable[str | int | None] = ()) -> None:
        self._numbers: dict[str | int, int] = {}
        self._rows = array("i")
        for label in labels:
            self.append(label)

    def append(self, label: str | int | None) -> None:
        """The next row's label: a class name, an index, or None."""
        nothing = label is None or label == NO_LABEL
        self._rows.append(-1 if nothing else self._numbers.setdefault(label, len(self._numbers)))  # type: ignore[arg-type]

    def indices(
        self, class_names: Sequence[str] | None, place: Callable[[int], str], *, untyped: bool = False
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """What `index_labels` gives for all rows; `untyped` labels are texts that may stand for numbers."""
        rows = np.frombuffer(self._rows, np.int32)
        distinct: Sequence[str | int | None] = list(self._numbers)
        if untyped:
            distinct = numbers_as_indices(distinct, class_names)
        found, names = index_labels(distinct, class_names, lambda number: place(int(np.argmax(rows == number))))
        return np.append(found, NO_LABEL)[rows], names


def index_labels(
    labels: Sequence[str | int | None], class_names: Sequence[str] | None, place: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int64 (samples,) class indices or NO_LABEL, and the class names.

    Strings are class names, in sorted order unless `class_names` gives the order; integers are indices, and -1 is no
    label. Raises SourceError for a label outside `class_names`, for numbers mixed with names, and for numbers that are
    no indices.
    """
    found = {label for label in labels if label not in (None, NO_LABEL)}
    numeric = {isinstance(label, int) for label in found}
    if len(numeric) > 1:
        raise SourceError("some labels are numbers and some are names", hint="write all of them as names")
    if numeric == {True}:
        return _index_numbers(labels, class_names, place)
    names = tuple(sorted(map(str, found))) if class_names is None else tuple(class_names)
    index_of = {name: index for index, name in enumerate(names)}
    indices = np.full(len(labels), NO_LABEL, dtype=np.int64)
    for row, label in enumerate(labels):
        if isinstance(label, str):
            if label not in index_of:
                raise _outside(place(row), label, names)
            indices[row] = index_of[label]
    return indices, names


def numbers_as_indices(
    labels: Sequence[str | int | None], class_names: Sequence[str] | None
) -> Sequence[str | int | None]:
    """Labels of a format without types (csv, cls): indices where each is a whole number and none is a known name."""
    found = {label for label in labels if label is not None}
    if found <= set(class_names or ()) or not all(_WHOLE_NUMBER.fullmatch(str(label)) for label in found):
        return labels
    return [None if label is None else int(label) for label in labels]


def _index_numbers(
    labels: Sequence[str | int | None], class_names: Sequence[str] | None, place: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    numbers = [NO_LABEL if label is None else int(label) for label in labels]
    for row, number in enumerate(numbers):
        if not NO_LABEL <= number < MAX_CLASSES:
            message = f"{place(row)}: {number} is no class index (0 to {MAX_CLASSES - 1:,})"
            raise SourceError(message, hint="write labels that are not counted from 0 as names")
        if class_names is not None and number >= len(class_names):
            raise _outside(place(row), number, class_names)
    names = map(str, range(max(numbers) + 1)) if class_names is None else class_names
    return np.array(numbers, dtype=np.int64), tuple(names)


def _outside(place: str, label: str | int, names: Sequence[str]) -> SourceError:
    known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return SourceError(
        f"{place}: the label {label!r} is not among the {len(names)} class names ({known})",
        hint="class names are those of the train split: a class must have samples there, or leave this one out",
    )
