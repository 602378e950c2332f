"""Names from anybody's cache, as a terminal or a picture can show them."""

import json
import unicodedata

__all__ = ["shortened", "visible"]


def visible(text: str, *, kept: str = "") -> str:
    """With JSON's escapes in place of what is not to be seen, such as what a terminal would act on.

    `kept` are such characters that stay. Of a text that is JSON already it makes the same JSON.
    """
    if text.isprintable():
        return text
    return "".join(char if char in kept or _is_seen(char) else json.dumps(char)[1:-1] for char in text)


def _is_seen(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] != "C" and category not in ("Zl", "Zp")


def shortened(text: str, most: int) -> str:
    """At most so many letters of a text: its beginning and its end, where names differ."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - 1 - most // 2) :]}"
