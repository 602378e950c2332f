"""Every error the project raises on purpose: one class for each different reaction.

FeatureCacheError            exit code 1
├── UsageError               2   the request is wrong: name, option, path
│   ├── UnknownNameError         no such teacher, student, objective, ...
│   ├── SourceError              the data set cannot be used as asked
│   └── TeacherError             the teacher cannot be loaded as asked
├── IncompleteError          3   rows are missing, and running again can add them
├── IdentityError            4   this is another teacher, data set or encoding
├── CorruptCacheError        5   what is on disk is not what was committed
└── DiskFullError            6   no space, or over quota
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from featurecache.types import Reason

__all__ = [
    "BadSampleError",
    "CorruptCacheError",
    "DiskFullError",
    "FeatureCacheError",
    "IdentityError",
    "IncompleteError",
    "SourceError",
    "TeacherError",
    "UnknownNameError",
    "UsageError",
    "differences",
]


class FeatureCacheError(Exception):
    """What is wrong, and in `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}  (hint: {self.hint})" if self.hint else self.message


class UsageError(FeatureCacheError):
    """The request itself is wrong."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not in its table; the hint has the nearest right one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"no {kind} is called {name!r}", hint=hint)


class SourceError(UsageError):
    """The data set cannot be used as asked."""


class TeacherError(UsageError):
    """The teacher cannot be loaded as asked."""


class IncompleteError(FeatureCacheError):
    """Rows are missing, and running the same command again can add them."""

    exit_code = 3


class IdentityError(FeatureCacheError):
    """What is there was made from something else; `fields` has (field, there, here) for each difference."""

    exit_code = 4

    def __init__(self, message: str, *, fields: list[tuple[str, Any, Any]] | None = None, hint: str = "") -> None:
        self.fields = fields or []
        lines = [f"\n  {name}: it has {there!r}, this run has {here!r}" for name, there, here in self.fields]
        super().__init__(message + "".join(lines), hint=hint)


class CorruptCacheError(FeatureCacheError):
    """Bytes on disk are not those that were committed."""

    exit_code = 5


class DiskFullError(FeatureCacheError):
    """The disk is full or a quota is used up; what was committed is safe."""

    exit_code = 6


class BadSampleError(FeatureCacheError):
    """One sample cannot be decoded; its row becomes invalid with this reason and the run goes on."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.text}: {detail}" if detail else reason.text)
        self.reason = reason


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The leaves in which two nested mappings differ, as (dotted name, value there, value here); None where absent."""
    found: list[tuple[str, Any, Any]] = []
    for name in sorted({*there, *here}):
        left, right = there.get(name), here.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{name}.")
        elif left != right or (name in there) != (name in here):
            found.append((f"{prefix}{name}", left, right))
    return found
