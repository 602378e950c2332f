"""The files that a pattern with braces and wildcards stands for."""

import glob
import itertools
import re
from pathlib import Path

from featurecache.errors import SourceError

__all__ = ["expand_pattern", "expand_urls", "is_pattern"]

_MAX_FILES = 100_000
"""A pattern that stands for more is a slip of the pen, or an attack by a cache that says where its data is."""

_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")


def is_pattern(path: Path) -> bool:
    """Whether the path has braces or wildcards and is not itself there."""
    return any(mark in str(path) for mark in "*?[{") and not path.exists()


def expand_pattern(text: str) -> list[Path]:
    """Existing files in the pattern's order. Raises SourceError where one spelled out, or every one, is missing."""
    files: list[Path] = []
    for name in _expand_braces(text):
        path = Path(name)
        matches = [Path(match) for match in glob.glob(name, recursive=True)] if is_pattern(path) else [path]
        for match in matches:
            if match.is_file():
                files.append(match)
            elif match is path:
                raise SourceError(
                    f"no file at {name}", hint="several paths, or a pattern, must name files that are there"
                )
    if not files:
        raise SourceError(f"no file matches {text!r}", hint="a pattern names files; a folder is given by its own path")
    return files


def expand_urls(text: str) -> list[str]:
    """The URLs that one with braces stands for, in the pattern's order. Raises SourceError for wildcards."""
    if "*" in text:
        hint = "the web cannot be listed: write the numbers, x-{000000..000146}.tar"
        raise SourceError(f"{text!r} has a wildcard", hint=hint)
    return _expand_braces(text)


def _expand_braces(text: str) -> list[str]:
    import braceexpand  # comes with webdataset

    if Path(text).exists() or "{" not in text:
        return [text]
    too_many = SourceError(f"{text!r} stands for more than {_MAX_FILES:,} files", hint="name a folder, or use *")
    if any(abs(int(last) - int(first)) >= _MAX_FILES for first, last in _RANGE.findall(text)):
        raise too_many  # before braceexpand lists the range
    try:
        names = list(itertools.islice(braceexpand.braceexpand(text), _MAX_FILES + 1))
    except ValueError as error:
        raise SourceError(
            f"{text!r} is no pattern: {error}", hint="write x-{000..146}.tar or x-{train,test}.tar"
        ) from None
    if len(names) > _MAX_FILES:
        raise too_many
    return names
