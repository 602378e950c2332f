"""Augmentations as plain data, read back without trusting whoever wrote them."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from featurecache.augment.base import Operation
from featurecache.augment.image import ImageAugmentation
from featurecache.augment.mask import TokenAugmentation
from featurecache.augment.operations import OPERATIONS
from featurecache.errors import UnknownNameError, UsageError

__all__ = ["augmentation_from_json"]

_LONGEST_TEXT = 64
_LONGEST_LIST = 2**16
_LARGEST = 2**53


def augmentation_from_json(value: object) -> ImageAugmentation | TokenAugmentation:
    """The augmentation that `to_json` described; "modality" may be left out for images.

    Raises UsageError for anything else, however strange: it comes from a stranger's cache, or from a file.
    """
    whole = _table("an augmentation", value)
    modality = whole.pop("modality", "image")
    if modality == "text":
        return TokenAugmentation(**_options("a text augmentation", TokenAugmentation, whole))
    if modality != "image":
        raise UsageError('an augmentation\'s modality is neither "image" nor "text"')
    found = _options("an image augmentation", ImageAugmentation, whole, operations=_operations)
    return ImageAugmentation(**found)


def _operations(what: str, value: object) -> tuple[Operation, ...]:
    return tuple(_operation(item) for item in _list(what, value))


def _operation(value: object) -> Operation:
    options = _table("an operation", value)
    name = _text("the name of an operation", options.pop("name", None))
    kind = OPERATIONS.get(name)
    return kind(**_options(f"operation {name!r}", kind, options))


def _options(what: str, kind: type, given: dict[str, object], **own: Callable[[str, object], object]) -> dict[str, Any]:
    """Keyword arguments for a dataclass, each read as its field's type says."""
    known = {field.name: field for field in fields(kind)}
    for name in given:
        if name not in known:
            raise UnknownNameError(f"option of {what}", name[:_LONGEST_TEXT], known)
    missing = [name for name, field in known.items() if field.default is MISSING and name not in given]
    if missing:
        raise UsageError(f"{what} has no {missing[0]!r}")
    read = {name: own.get(name) or _READERS[known[name].type] for name in given}
    return {name: read[name](f"{name!r} of {what}", value) for name, value in given.items()}


def _table(what: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{what} is not a table of names and values")
    return dict(value)


def _list(what: str, value: object) -> list[object]:
    if not isinstance(value, list) or len(value) > _LONGEST_LIST:
        raise UsageError(f"{what} is not a list of at most {_LONGEST_LIST}")
    return value


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise UsageError(f"{what} is not a short text")
    return value


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        raise UsageError(f"{what} is not a number")  # nor is NaN, which is in no range
    return float(value)


def _whole(what: str, value: object) -> int:
    number = _number(what, value)
    if number != int(number):
        raise UsageError(f"{what} is not a whole number")
    return int(number)


def _two(what: str, value: object) -> tuple[float, float]:
    items = _list(what, value)
    if len(items) != 2:
        raise UsageError(f"{what} is not two numbers")
    return _number(what, items[0]), _number(what, items[1])


def _texts(what: str, value: object) -> tuple[str, ...]:
    return tuple(_text(what, item) for item in _list(what, value))


def _wholes(what: str, value: object) -> tuple[int, ...]:
    return tuple(_whole(what, item) for item in _list(what, value))


_READERS: dict[Any, Callable[[str, object], object]] = {
    str: _text,
    float: _number,
    int: _whole,
    tuple[float, float]: _two,
    tuple[str, ...]: _texts,
    tuple[int, ...]: _wholes,
}
