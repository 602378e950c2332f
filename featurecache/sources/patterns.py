"""The files that a pattern with braces and wildcards stands for."""

import glob
import itertools
import re
from pathlib import Path
from urllib.parse import urlsplit

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
    """The URLs that one with braces stands for, in the pattern's order.

    Raises SourceError for wildcards, for an address with a password, and for what is no address.
    """
    urls = _expand_braces(text)
    for url in urls:
        _check_url(url)
    if "*" in text:
        hint = "the web cannot be listed: write the numbers, x-{000000..000146}.tar"
        raise SourceError(f"{_shown(text)!r} has a wildcard", hint=hint)
    return urls


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        is_address = bool(host) and parts.port != 0  # asking for the port is what checks it
    except ValueError:
        is_address = False
    if "@" in url.partition("//")[2].partition("/")[0]:
        hint = "a cache remembers where its data was: give an address without a password"
        raise SourceError("an address with a user name or password is refused", hint=hint)
    if not is_address:
        raise SourceError(f"{_shown(url)!r} is no address", hint="write https://HOST/x-{000..146}.tar")


def _shown(text: str) -> str:
    """Without its query, which may be a signature."""
    return text.partition("?")[0]


def _expand_braces(text: str) -> list[str]:
    import braceexpand

    if Path(text).exists() or "{" not in text:
        return [text]
    too_many = SourceError(
        f"{_shown(text)!r} stands for more than {_MAX_FILES:,} files", hint="name a folder, or use *"
    )
    if any(abs(int(last) - int(first)) >= _MAX_FILES for first, last in _RANGE.findall(text)):
        raise too_many  # before braceexpand lists the range
    try:
        names = list(itertools.islice(braceexpand.braceexpand(text), _MAX_FILES + 1))
    except ValueError:  # its message repeats the text, signature included
        raise SourceError(
            f"{_shown(text)!r} is no pattern: its braces do not match",
            hint="write x-{000..146}.tar or x-{train,test}.tar",
        ) from None
    if len(names) > _MAX_FILES:
        raise too_many
    return names
