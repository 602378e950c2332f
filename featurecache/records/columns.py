"""Which columns of a file of records hold what, told from the first record."""

from collections.abc import Iterable, Mapping, Sequence

from featurecache.errors import UsageError
from featurecache.records.files import Row
from featurecache.records.form import Classes, Form, Kind, parsed
from featurecache.types import Json

__all__ = ["find_form"]

_KINDS: tuple[Kind, ...] = ("probabilities", "logits")
_KEYS = ("key", "id")
_SPLIT = "split"
_OTHERS = (*_KEYS, _SPLIT, "text", "label")
"""Columns that are classes only where they are named as such."""
_SHOWN = 8


def find_form(
    first: Row,
    *,
    key_column: str | None = None,
    are: Kind | None = None,
    classes: Sequence[str] | None = None,
    data_classes: Sequence[str] = (),
) -> Form:
    """How the records of a file are read, told from the first one.

    `classes` are their names in order; the data's stand in for them where they fit. Raises UsageError where there is no
    key, nothing that could be the numbers, or another number of classes.
    """
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise UsageError("the class names are not different names", hint="give each class once, in order")
    try:
        return _form(first.values, key_column, are, classes, data_classes)
    except UsageError as error:
        raise UsageError(f"{first.place}: {error.message}", hint=error.hint) from None


def _form(
    first: Mapping[str, Json],
    key_column: str | None,
    are: Kind | None,
    classes: Sequence[str] | None,
    data_classes: Sequence[str],
) -> Form:
    key = key_column or next((name for name in _KEYS if name in first), _KEYS[0])
    if key not in first:
        raise UsageError(f"no column {key!r}; there are {_listed(first)}", hint="name the key's with --key-column")
    split = _SPLIT if _SPLIT in first and _SPLIT not in (key, *(classes or ())) else None
    kinds = [kind for kind in _KINDS if kind in first and are in (None, kind)]
    if len(kinds) > 1:
        raise UsageError("there are probabilities and logits", hint="say which to take: --are probabilities, or logits")
    column = kinds[0] if kinds else None
    if column is None and classes is None and (others := [kind for kind in _KINDS if kind in first]):
        raise UsageError(f"there is no column {are!r}, but one {others[0]!r}", hint=f"say --are {others[0]}")
    if column is None:
        found = _of_columns([name for name in first if name != key], classes, data_classes)
    else:
        found = _of_values(parsed(first[column]), column, classes, data_classes)
    read = {key, split, column} | (set() if column else set(found.names))
    unread = tuple(name for name in first if name not in read)
    kind = column or are or "probabilities"
    return Form(key=key, split=split, are=kind, column=column, classes=found, unread=unread)


def _of_values(value: Json, column: str, classes: Sequence[str] | None, data_classes: Sequence[str]) -> Classes:
    """The classes of a list of numbers, or of an object of them."""
    if isinstance(value, dict) and value:
        return _named(list(value), classes, data_classes, is_whole=set(value) <= set(data_classes))
    if not isinstance(value, list) or not value:
        hint = 'write a list, [0.1, 0.9], or an object, {"cat": 0.1, "dog": 0.9}'
        raise UsageError(f"{column!r} has no list of numbers", hint=hint)
    if classes is None:
        fits = len(data_classes) == len(value)
        return Classes(tuple(data_classes) if fits else (), len(value), "the data's, in their order" if fits else "")
    if len(classes) != len(value):
        message = f"{column!r} has {len(value)} numbers, and there are {len(classes)} class names"
        raise UsageError(message, hint="--classes has a name for each number, in order")
    return Classes(tuple(classes), len(value), "those of --classes")


def _of_columns(columns: Sequence[str], classes: Sequence[str] | None, data_classes: Sequence[str]) -> Classes:
    """Those that have a column each."""
    could = [name for name in columns if name not in _OTHERS]
    found = _named(could, classes, data_classes, is_whole=set(data_classes) <= set(columns))
    if missing := [name for name in found.names if name not in columns]:
        message = f"no column of the class {missing[0]!r}; besides the key there are {_listed(columns)}"
        raise UsageError(message, hint="name columns as classes, or have one with all: probabilities, or logits")
    if not found.names:
        hint = "have a column for each class, or one with all of them: probabilities, or logits"
        raise UsageError(f"no column has numbers of classes; besides the key there are {_listed(columns)}", hint=hint)
    return found


def _named(
    found: Sequence[str], classes: Sequence[str] | None, data_classes: Sequence[str], *, is_whole: bool
) -> Classes:
    """The classes as they were given; else the data's where these are the whole of it; else those that the file has."""
    if classes is not None:
        return Classes(tuple(classes), len(classes), "those of --classes")
    if data_classes and is_whole:
        return Classes(tuple(data_classes), len(data_classes), "the data's")
    return Classes(tuple(found), len(found), "those of the first record")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(map(repr, every[:_SHOWN])) + (", ..." if len(every) > _SHOWN else "") or "no others"
