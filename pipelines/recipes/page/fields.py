"""A JSON object that a stranger may have written, read field by field."""

import math
from collections.abc import Callable
from typing import TypeVar

from featurecache.types import Json

__all__ = ["Fields", "WrongFieldError"]

Value = TypeVar("Value")


class WrongFieldError(ValueError):
    """A field is missing, or is not what it should be; the message names it by its place."""


class Fields:
    """A JSON object and where it stands. Every method raises WrongFieldError; a whole number may stand for a float."""

    def __init__(self, value: Json, place: str = "") -> None:
        self._place = place
        if not isinstance(value, dict):
            raise WrongFieldError(f"{place.rstrip('.') or 'it'} is no JSON object")
        self._values = value

    def optional(self, name: str, kind: type[Value]) -> Value | None:
        """A field of this type; None where it is null or absent."""
        return self._read(self._values.get(name), name, kind)

    def value(self, name: str, kind: type[Value]) -> Value:
        """A field of this type, which has to be there."""
        return self._there(self.optional(name, kind), name)

    def share(self, name: str) -> float | None:
        """A number from 0 to 1; None where it is null or absent."""
        return self._share(self.optional(name, float), name)

    def within(self, name: str) -> "Fields":
        """The fields of an object in this one."""
        return Fields(self._values.get(name), f"{self._place}{name}.")

    def each(self, name: str, read: "Callable[[Fields], Value]") -> tuple[Value, ...]:
        """What is read from each object of a list."""
        items = enumerate(self.value(name, list))
        return tuple(read(Fields(item, f"{self._place}{name}[{number}].")) for number, item in items)

    def all(self, name: str, kind: type[Value]) -> tuple[Value, ...]:
        """A list of values of this type."""
        return tuple(self._there(self._read(item, name, kind), name) for item in self.value(name, list))

    def numbers(self, name: str, count: int) -> tuple[float | None, ...]:
        """As many finite numbers or nulls; null or nothing in place of the list stands for nulls."""
        return self._some(self.optional(name, list), name, float, count)

    def shares(self, name: str, count: int) -> tuple[float | None, ...]:
        """As many numbers from 0 to 1 or nulls; null or nothing in place of the list stands for nulls."""
        return tuple(self._share(value, name) for value in self.numbers(name, count))

    def table(self, name: str, rows: int, columns: int) -> tuple[tuple[str | None, ...], ...]:
        """So many rows of so many texts or nulls; null in place of a row stands for nulls."""
        found = self._some(self.value(name, list), name, list, rows)
        return tuple(self._some(row, name, str, columns) for row in found)

    def _some(self, values: list[Json] | None, name: str, kind: type[Value], count: int) -> tuple[Value | None, ...]:
        if values is None:
            return (None,) * count
        if len(values) != count:
            raise self._wrong(name, f"of length {len(values):,}, not {count:,}")
        return tuple(self._read(value, name, kind) for value in values)

    def _read(self, value: Json, name: str, kind: type[Value]) -> Value | None:
        if kind is float and type(value) is int:
            value = float(value)
        if value is not None and type(value) is not kind:  # not isinstance, to which true is a whole number
            raise self._wrong(name, f"{str(value)[:40]!r}, which is no {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise self._wrong(name, "beyond all numbers")
        return value

    def _there(self, value: Value | None, name: str) -> Value:
        if value is None:
            raise self._wrong(name, "missing")
        return value

    def _share(self, value: float | None, name: str) -> float | None:
        if value is not None and not 0 <= value <= 1:
            raise self._wrong(name, f"{value:g}, which is no part of the whole")
        return value

    def _wrong(self, name: str, what: str) -> WrongFieldError:
        return WrongFieldError(f"{self._place}{name} is {what}")
