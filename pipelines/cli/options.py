"""Options that several commands share, and how their text is read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from featurecache.errors import UsageError
from featurecache.types import Json

__all__ = [
    "CacheOption",
    "DataOption",
    "DeviceOption",
    "JsonFlag",
    "Precision",
    "WorkersOption",
    "key_values",
    "names",
    "numbers",
    "read_json_file",
]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
CacheOption = Annotated[str, typer.Option("--cache", help="The cache's directory.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", help="Name, folder, tars, text file; or train=A --data test=B.", show_default=False),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")]
WorkersOption = Annotated[int | None, typer.Option(help="Loader processes; cores less one by default.")]
Precision = Annotated[str, typer.Option("--amp", help="float32, or autocast to bfloat16 or float16.")]


def names(text: str | None) -> list[str] | None:
    """ "a,b" -> ["a", "b"]; None stays None."""
    return [item.strip() for item in text.split(",") if item.strip()] if text else None


def numbers(text: str) -> list[float]:
    """ "1,2,4" -> [1.0, 2.0, 4.0]. Raises UsageError."""
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is not a list of numbers", hint="write 1,2,4") from None


def key_values(items: Sequence[str] | None, flag: str) -> dict[str, Json]:
    """["a=1", "b=x"] -> {"a": 1, "b": "x"}: a value that reads as JSON is that, any other is text. Raises UsageError."""
    values: dict[str, Json] = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        if not (name and equals):
            raise UsageError(f"{flag} {item!r} has no '='", hint=f"write {flag} NAME=VALUE")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def read_json_file(path: str | None) -> Mapping[str, str] | None:
    """A JSON object of texts. Raises UsageError."""
    if path is None:
        return None
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise UsageError(f"{path} is not a JSON object of names", hint='write {"data class": "teacher class"}')
    return value
