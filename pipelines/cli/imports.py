"""`fc import probabilities`: a cache of what a teacher said elsewhere."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from featurecache.errors import UsageError
from pipelines.cli import console
from pipelines.cli.extract import how_to_go_on
from pipelines.cli.options import (
    MODEL,
    IdColumn,
    ImageColumn,
    JsonFlag,
    LabelColumn,
    LimitOption,
    RequiredData,
    TextColumn,
    WorkersOption,
    names,
    numbers,
)
from pipelines.cli.teacher_options import OUTPUTS, CropPct, MaxLength, StoreInputs, Temperatures

__all__ = ["probabilities"]

RECORDS = "The file"


def probabilities(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help=".jsonl, .csv (also .gz) or .parquet: one record a sample.")
    ],
    data: RequiredData,
    out: Annotated[str, typer.Option(metavar="DIR", help="The cache's directory.")] = "./cache",
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only these splits, such as train,test.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the teacher; the file's name by default.")
    ] = None,
    limit: LimitOption = None,
    are: Annotated[
        Literal["probabilities", "logits"] | None,
        typer.Option(
            metavar="KIND",
            help="What the numbers are; told from the column's name, else probabilities.",
            rich_help_panel=RECORDS,
        ),
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of the sample's key.", show_default="key or id", rich_help_panel=RECORDS
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help='FILE with a JSON list of names, or the list: \'["a", "b"]\'.', rich_help_panel=RECORDS
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, metavar="NUMBER", help="How far sums may be from 1.", rich_help_panel=RECORDS),
    ] = 1e-3,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of texts: minilm, a folder or tokenizer.json; how students see them.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    max_length: MaxLength = None,
    img_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            metavar="PIXELS",
            help="Of images: how students see them.",
            show_default="224",
            rich_help_panel=MODEL,
        ),
    ] = None,
    crop_pct: CropPct = None,
    encode: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="Of the logits: float32, float16, topk:K or sampled:N.", rich_help_panel=OUTPUTS
        ),
    ] = "float32",
    temperatures: Temperatures = "1,2,4",
    store_inputs: StoreInputs = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    id_column: IdColumn = None,
    image_column: ImageColumn = None,
    workers: WorkersOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a cache of a teacher's class probabilities.

    They were kept in a file: a record has the key of a sample, and a column for each class or one list, `probabilities`
    or `logits`. No teacher is loaded. Run it again after an interruption, and it goes on where it was.

    Example: featurecache import probabilities answers.csv --data ./photos
    """
    from pipelines.imports import import_probabilities

    run = import_probabilities(
        file=file,
        data=data,
        out=out,
        splits=names(split),
        are=are,
        key_column=key_column,
        classes=_class_names(classes),
        tolerance=tolerance,
        name=name,
        tokenizer=tokenizer,
        max_length=max_length,
        img_size=img_size,
        crop_pct=crop_pct,
        store_inputs=store_inputs,
        encode=encode,
        temperatures=numbers(temperatures),
        workers=workers,
        text_column=text_column,
        label_column=label_column,
        id_column=id_column,
        image_column=image_column,
        limit=limit,
    )
    console.show(console.follow(run, interrupted=lambda: how_to_go_on(out)), as_json=as_json)


def _class_names(text: str | None) -> list[str] | None:
    """A JSON list of names, or what is in a file of that name. Raises UsageError."""
    if text is None:
        return None
    hint = """write '["cat", "dog"]', or into a file, and give its path"""
    try:
        value = json.loads(text if text.lstrip().startswith("[") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read --classes {text}: {error}", hint=hint) from None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"--classes {text} is no JSON list of names", hint=hint)
    return value
