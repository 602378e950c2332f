"""What options of an operation may be: each answers a wrong one with a UsageError."""

import re
from typing import TypeAlias

from featurecache.errors import UsageError

__all__ = ["check_name", "check_number", "check_range"]

Number: TypeAlias = int | float
"""1 is as good as 1.0."""


def check_number(what: str, value: Number, low: Number, high: Number) -> None:
    """Raises UsageError unless low <= value <= high."""
    if not low <= value <= high:
        raise UsageError(f"{what} is {value:g}", hint=f"choose a number from {low:g} to {high:g}")


def check_range(what: str, value: tuple[Number, Number], low: Number, high: Number) -> None:
    """Raises UsageError unless low <= value[0] <= value[1] <= high."""
    if not low <= value[0] <= value[1] <= high:
        hint = f"choose two numbers from {low:g} to {high:g}, the smaller one first"
        raise UsageError(f"{what} is {value[0]:g} to {value[1]:g}", hint=hint)


def check_name(name: str, version: int) -> None:
    """Raises UsageError unless an augmentation may be called so."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9+._-]{0,63}", name):
        raise UsageError("an augmentation's name is not one", hint="up to 64 of a-z, 0-9, and . _ - +")
    check_number(f"the version of augmentation {name!r}", version, 1, 2**31 - 1)
