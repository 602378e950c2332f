"""`fc extract`, `fc probe`, `fc fit-teacher`: what a teacher knows, put into a cache."""

import os
import shlex
import sys
from typing import Annotated, Literal

import typer

from featurecache.errors import FeatureCacheError
from pipelines.cli import console
from pipelines.cli.options import (
    MACHINE,
    MODEL,
    TRAINING,
    CacheOption,
    DeviceOption,
    IdColumn,
    ImageColumn,
    JsonFlag,
    LabelColumn,
    LimitOption,
    Precision,
    RequiredData,
    TextColumn,
    WorkersOption,
    existing_device,
    names,
    numbers,
)
from pipelines.cli.teacher_options import (
    VIEWS,
    AugmentOption,
    CropPct,
    Encode,
    ImgSize,
    MaxLength,
    ModelKwargs,
    Outputs,
    Pool,
    StoreInputs,
    Temperatures,
    TrustRemoteCode,
    Weights,
    encodings,
    teacher_options,
)

__all__ = ["extract", "fit_teacher", "how_to_go_on", "probe", "resume_command"]


def extract(
    teacher: Annotated[
        str, typer.Option(metavar="NAME", help="vit_base, minilm, timm:NAME, hf:NAME[@REVISION], a folder, torch:M:F.")
    ],
    data: RequiredData,
    out: Annotated[str, typer.Option(metavar="DIR", help="The cache's directory.")] = "./cache",
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only these splits, such as train,test.")
    ] = None,
    limit: LimitOption = None,
    outputs: Outputs = None,
    encode: Encode = None,
    temperatures: Temperatures = "1,2,4",
    views: Annotated[
        int, typer.Option(min=1, metavar="N", help="The plain view, and N-1 random ones.", rich_help_panel=VIEWS)
    ] = 1,
    augment: AugmentOption = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**53 - 1, metavar="N", help="Of the random views.", rich_help_panel=VIEWS)
    ] = 0,
    store_inputs: StoreInputs = None,
    weights: Weights = None,
    img_size: ImgSize = None,
    crop_pct: CropPct = None,
    max_length: MaxLength = None,
    pool: Pool = None,
    model_kwargs: ModelKwargs = None,
    trust_remote_code: TrustRemoteCode = False,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    id_column: IdColumn = None,
    image_column: ImageColumn = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples per forward pass.", rich_help_panel=MACHINE)
    ] = 64,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    amp: Precision = "float32",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many bytes, files and hours it would take.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a frozen teacher once over data and keep its outputs.

    Run it again after an interruption, and it goes on where it was.

    Example: featurecache extract --teacher vit_base --data imagenet --out ./cache
    """
    from pipelines.extract import extract_cache

    run = extract_cache(
        teacher=teacher,
        data=data,
        out=out,
        splits=names(split),
        outputs=names(outputs),
        encode=encodings(encode),
        temperatures=numbers(temperatures),
        views=views,
        augment=augment,
        seed=seed,
        store_inputs=store_inputs,
        batch_size=batch_size,
        workers=workers,
        device=existing_device(device),
        precision=amp,
        text_column=text_column,
        label_column=label_column,
        id_column=id_column,
        image_column=image_column,
        limit=limit,
        dry_run=dry_run,
        **teacher_options(
            weights=weights,
            img_size=img_size,
            crop_pct=crop_pct,
            max_length=max_length,
            pool=pool,
            model_kwargs=model_kwargs,
            trust_remote_code=trust_remote_code,
        ),
    )
    facts = console.follow(run, interrupted=lambda: "nothing was written" if dry_run else how_to_go_on(out))
    if dry_run and not as_json:
        facts |= {name: f"{facts[name]:,} ({console.size(facts[name])})" for name in ("bytes", "free")}
        facts["time"] = f"{console.duration(3600 * facts.pop('hours'))}, without starting, listing and measuring"
    console.show(facts, as_json=as_json)


def probe(
    cache: CacheOption = "./cache",
    labels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many labels may be seen; all by default.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The split whose labels are used.")] = "train",
    output: Annotated[str, typer.Option(metavar="NAME", help="The output the head stands on.")] = "embedding",
    validation: Annotated[
        float, typer.Option(min=0.01, max=0.9, metavar="PART", help="Part of the labels to stop by.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the head's first weights.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Fit a linear head on cached embeddings.

    It is added to the cache: students can learn from logits, and the teacher is not run again.

    Example: featurecache probe --cache ./cache --labels 500
    """
    from pipelines.probe import fit_probe

    run = fit_probe(cache=cache, split=split, labels=labels, output=output, validation=validation, seed=seed)
    console.show(console.follow(run, interrupted="nothing was added"), as_json=as_json)


def fit_teacher(
    model: Annotated[str, typer.Option(metavar="NAME", help="timm:NAME, hf:FOLDER, minilm.")],
    data: RequiredData,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the teacher goes; --teacher DIR then reads it.")],
    mode: Annotated[
        Literal["ft", "fr"], typer.Option(metavar="MODE", help="ft: from pretrained weights; fr: from random ones.")
    ] = "ft",
    epochs: Annotated[
        float, typer.Option(metavar="N", help="Passes over the training samples.", rich_help_panel=TRAINING)
    ] = 4,
    lr: Annotated[
        float | None, typer.Option(metavar="RATE", help="Peak learning rate.", rich_help_panel=TRAINING)
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many labels may be seen, by key.", rich_help_panel=TRAINING),
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.9, metavar="PART", help="Part held out, by key.", rich_help_panel=TRAINING)
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of weights and order.", rich_help_panel=TRAINING)] = 0,
    img_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Input size; the model's by default.", rich_help_panel=MODEL),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, metavar="TOKENS", help="Longest text.", rich_help_panel=MODEL)
    ] = None,
    limit: LimitOption = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="FILE.safetensors to start from.", rich_help_panel=MODEL)
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    image_column: ImageColumn = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples per step.", rich_help_panel=MACHINE)
    ] = 32,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    amp: Precision = "float32",
    as_json: JsonFlag = False,
) -> None:
    """Train a teacher of your own on labels; extract reads it.

    The folder that is left is in timm's or transformers' own format.

    Example: featurecache fit-teacher --model minilm --data ./texts --out ./teacher
    """
    from pipelines.fit import fit_teacher as fit

    run = fit(
        model=model,
        data=data,
        out=out,
        mode=mode,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        labels=labels,
        validation=validation,
        img_size=img_size,
        max_length=max_length,
        weights=weights,
        seed=seed,
        workers=workers,
        device=existing_device(device),
        precision=amp,
        text_column=text_column,
        label_column=label_column,
        image_column=image_column,
        limit=limit,
    )
    console.show(console.follow(run, interrupted="no teacher was written"), as_json=as_json)


def how_to_go_on(out: str) -> str:
    """What was kept, counted on the disk, and the command that goes on from there."""
    from pipelines.describe import describe_progress

    try:
        facts = describe_progress(out)
        parts = [(name, part) for name, part in facts["parts"].items() if not name.endswith("/rows")]
        kept = ", ".join(f"{name} {part['committed']:,} of {part['rows']:,} rows" for name, part in parts)
        kept += f"; not begun is {', '.join(facts['not_begun'])}" if kept and facts["not_begun"] else ""
    except FeatureCacheError:
        kept = ""
    return f"{f'committed are {kept}' if kept else 'nothing was committed yet'}; go on with\n  {resume_command()}"


def resume_command() -> str:
    """The command that is running, to be typed again; under the name that no shell takes for its own."""
    command = shlex.join(["featurecache", *sys.argv[1:]])
    world = os.environ.get("WORLD_SIZE", "1")
    return command if world == "1" else f"torchrun ... $(which featurecache) {shlex.join(sys.argv[1:])}"
