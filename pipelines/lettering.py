"""Words in Pillow's own font: how wide they are, and what of them fits."""

import bisect
import math
import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial

from PIL import ImageFont

from featurecache.errors import UsageError
from pipelines.visible import shortened, visible

__all__ = ["drawable", "fitted", "font", "length", "wrapped"]

_MOST_LINES = 3
"""Of a heading."""
_MOST_LETTERS = 400
"""Of any text that is measured at all."""


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's default font, so many pixels high. Raises UsageError where Pillow has none that can be measured."""
    found = ImageFont.load_default(size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise UsageError("this Pillow cannot write words: it is built without FreeType", hint="install its wheel")
    return found


def length(text: str, size: int) -> int:
    """Pixels that a text takes, rounded up."""
    return math.ceil(font(size).getlength(text))


def drawable(text: str) -> str:
    """A text in letters that the font has: without accents, and with escapes for other scripts, whose letters would all
    look the same."""
    shown = visible(text)
    return shown if shown.isascii() else "".join(map(_letter, shown))


@lru_cache(maxsize=4096)
def _letter(char: str) -> str:
    bare = "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))
    return next((text for text in (char, bare) if text and all(map(_has, text))), f"\\u{ord(char):04x}")


def _has(char: str) -> bool:
    own = font(13)
    return char.isascii() or bytes(own.getmask(char)) != bytes(own.getmask("\uffff"))


def fitted(text: str, width: int, size: int) -> str:
    """What of a text fits into a width: its beginning and its end, where names differ."""
    text = drawable(shortened(text, _MOST_LETTERS))
    if length(text, size) <= width:
        return text
    kept = _fitting(range(2, len(text)), width, lambda count: length(_middle_out(text, count), size))
    return _middle_out(text, kept) if kept else "…"


def _middle_out(text: str, kept: int) -> str:
    """So many letters of a text, half from its beginning and half from its end."""
    return f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"


def _begun(text: str, size: int, kept: int) -> int:
    return length(text[:kept], size)


def _fitting(counts: range, width: int, length_of: Callable[[int], int]) -> int:
    """The largest of these counts whose length is at most `width`; 0 if none is."""
    at = bisect.bisect_right(counts, width, key=length_of)
    while at and length_of(counts[at - 1]) > width:  # letters that stand closer together than they would alone
        at -= 1
    return counts[at - 1] if at else 0


def wrapped(text: str, width: int, size: int) -> list[str]:
    """A text in lines that fit, broken at a space where there is one; the middle of a very long one is left out."""
    left = drawable(shortened(text, _MOST_LETTERS))
    lines: list[str] = []
    while left and len(lines) < _MOST_LINES - 1 and length(left, size) > width:
        fits = _fitting(range(1, len(left)), width, partial(_begun, left, size)) or 1
        at = left.rfind(" ", fits // 2, fits + 1)
        fits = at if at > 0 else fits
        lines.append(left[:fits].rstrip())
        left = left[fits:].lstrip()
    return [*lines, fitted(left, width, size)] if left or not lines else lines
