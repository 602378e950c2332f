"""Options that several commands share, and how their text is read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from featurecache.errors import UsageError
from featurecache.types import Json

__all__ = [
    "COLUMNS",
    "DATA",
    "MACHINE",
    "MODEL",
    "TRAINING",
    "CacheOption",
    "CachePath",
    "DataOption",
    "DeviceOption",
    "IdColumn",
    "ImageColumn",
    "JsonFlag",
    "LabelColumn",
    "LimitOption",
    "MaxInvalid",
    "Precision",
    "RequiredData",
    "TextColumn",
    "WorkersOption",
    "existing_device",
    "fraction",
    "key_values",
    "names",
    "numbers",
    "read_json_file",
]

DATA = "Samples and labels"
MODEL = "Model"
MACHINE = "Speed and memory"
TRAINING = "Training"
COLUMNS = "Columns of text files and tables"

_DATA_HELP = "A name, a folder, tars, tables, texts, https://HOST/X.tar, hf:NAME; or --data train=A --data test=B."

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
CacheOption = Annotated[str, typer.Option("--cache", metavar="DIR", help="The cache's directory.")]
CachePath = Annotated[str, typer.Argument(metavar="CACHE", help="The cache's directory.")]
RequiredData = Annotated[list[str], typer.Option("--data", metavar="DATA", help=_DATA_HELP)]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="DATA", help="Where the samples are now, if they were moved.", show_default=False),
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first samples of each split.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE", help="cpu, cuda, cuda:1, mps; the best there is by default.", rich_help_panel=MACHINE
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Loader processes; chosen by cores and device.", rich_help_panel=MACHINE),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(
        "--amp", metavar="DTYPE", help="float32, or autocast to bfloat16 or float16.", rich_help_panel=MACHINE
    ),
]
MaxInvalid = Annotated[
    str, typer.Option(metavar="PART", help="Largest part of rows without outputs.", rich_help_panel=DATA)
]
TextColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the text.", show_default="text", rich_help_panel=COLUMNS),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the image, where several could be.", rich_help_panel=COLUMNS),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Column of the key, where there is one.", show_default="id", rich_help_panel=COLUMNS
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the label.", show_default="label", rich_help_panel=COLUMNS),
]


def existing_device(name: str | None) -> str | None:
    """The device's name, if tensors can be made on it; None stays None. Raises UsageError."""
    if name is None:
        return None
    import torch

    try:
        device = torch.empty(0, device=name).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # or pinned memory would open a context on the first GPU too
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        hint = "leave --device out to use the best there is; cpu always works"
        raise UsageError(f"cannot use --device {name}: {reason}", hint=hint) from None
    return name


def names(text: str | Sequence[str] | None) -> list[str] | None:
    """ "a,b", or several of such -> ["a", "b"]; None stays None."""
    texts = [text] if isinstance(text, str) else text or ()
    return [name for item in texts for part in item.split(",") if (name := part.strip())] or None


def numbers(text: str) -> list[float]:
    """ "1,2,4" -> [1.0, 2.0, 4.0]. Raises UsageError."""
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is not a list of numbers", hint="write 1,2,4") from None


def fraction(text: str, flag: str) -> float:
    """ "1%" or "0.01" -> 0.01. Raises UsageError."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} {text!r} is not a part of the whole", hint="write 1% or 0.01")
    return value


def key_values(items: Sequence[str] | None, flag: str) -> dict[str, Json]:
    """["a=1", "b=x"] -> {"a": 1, "b": "x"}: a value that reads as JSON is that, others are text. Raises UsageError."""
    values: dict[str, Json] = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        if not (name and equals):
            raise UsageError(f"{flag} {item!r} has no '='", hint=f"write {flag} NAME=VALUE")
        if name in values:
            raise UsageError(f"{flag} names {name!r} twice", hint="give each name one value")
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
        hint = 'write {"data class": "teacher class"} into a file, and give its path'
        raise UsageError(f"cannot read {path}: {error}", hint=hint) from None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise UsageError(f"{path} is not a JSON object of names", hint='write {"data class": "teacher class"}')
    return value
