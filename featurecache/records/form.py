"""What a record of a file is like: which columns have the key, the split, and one number for each class."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from featurecache.errors import SourceError
from featurecache.sources.layout import split_name
from featurecache.sources.text_records import id_value
from featurecache.types import Json

__all__ = ["Classes", "Form", "Kind", "parsed"]

Kind: TypeAlias = Literal["probabilities", "logits"]


@dataclass(frozen=True, slots=True)
class Classes:
    """What the numbers of a record are about."""

    names: tuple[str, ...]
    """In the order of the numbers; empty where nobody named them."""
    size: int
    """How many there are."""
    named_by: str
    """Where the names are from, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a key and numbers are read from a record."""

    key: str
    """The column of the key."""
    split: str | None
    """The column that says of which split a sample is; None where the key alone finds it."""
    are: Kind
    column: str | None
    """The column with all numbers of a record, as a list or as an object by class; None where each class has one."""
    classes: Classes
    unread: tuple[str, ...] = ()
    """Columns that are not looked at."""

    def key_of(self, values: Mapping[str, Json]) -> str:
        """What the sample of a record is found by. Raises ValueError, saying what is wrong, where there is no key."""
        key = id_value(values.get(self.key))
        if key is None:
            raise ValueError(f"it has no key in {self.key!r}, which is a text or a whole number")
        if self.split is None:
            return key
        try:
            return self.joined(split_name(str(values.get(self.split))), key)
        except SourceError as error:
            raise ValueError(error.message) from None

    def joined(self, split: str, key: str) -> str:
        """What a sample of a split is found by: its key, behind the split's name where there is a column of those."""
        return key if self.split is None else f"{split}/{key}"

    def numbers(self, values: Mapping[str, Json]) -> np.ndarray:
        """float64 (classes,). Raises ValueError, saying what is wrong, for what are not so many numbers."""
        if self.column is None:
            found: Json = [values.get(name) for name in self.classes.names]
        else:
            found = parsed(values.get(self.column))
        is_named = self.column is None or isinstance(found, dict)
        if isinstance(found, dict):
            found = self._in_order(found)
        if not isinstance(found, list) or len(found) != self.classes.size:
            has = f"{len(found)} numbers" if isinstance(found, list) else "no list of numbers"
            raise ValueError(f"it has {has} in {self.column!r}, and the first record has {self.classes.size}")
        try:
            if None not in found and (numbers := np.array(found, np.float64)).ndim == 1:
                return numbers
        except (TypeError, ValueError, OverflowError):
            pass
        raise ValueError(_no_number(found, self.classes.names if is_named else ()))

    def _in_order(self, found: Mapping[str, Json]) -> list[Json]:
        """The numbers of an object. A class that it leaves out has the probability 0."""
        names = self.classes.names
        if unknown := found.keys() - set(names):
            message = f"it has a class {min(unknown)!r}, which is none of {self.classes.named_by}"
            raise ValueError(message)
        if self.are == "logits" and (absent := [name for name in names if name not in found]):
            raise ValueError(f"it has no logit of {absent[0]!r}")
        return [found.get(name, 0.0) for name in names]


def parsed(value: Json) -> Json:
    """A value as it is; what a text spells, as in a .csv, where that is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _no_number(found: Sequence[Json], names: Sequence[str]) -> str:
    """The first of them that is no number, in words."""
    for at, value in enumerate(found):
        try:
            is_number = value is not None and np.array(value, np.float64).ndim == 0
        except (TypeError, ValueError, OverflowError):
            is_number = False
        if not is_number:
            of = repr(names[at]) if names else f"number {at + 1}"
            return f"{of} is {str(value)[:40]!r}, which is no number"
    return "its numbers are of no one kind"
