"""`fc extract`, `fc probe`, `fc fit-teacher`: what a teacher knows, put into a cache."""

import shlex
import sys
from typing import Annotated

import typer

from pipelines.cli import console
from pipelines.cli.options import (
    CacheOption,
    DataOption,
    DeviceOption,
    JsonFlag,
    Precision,
    WorkersOption,
    key_values,
    names,
    numbers,
)

__all__ = ["extract", "fit_teacher", "probe", "resume_command"]


def extract(
    teacher: Annotated[str, typer.Option(help="vit_base, minilm, timm:NAME, hf:NAME[@REVISION], a folder, torch:M:F.")],
    data: DataOption = None,
    out: Annotated[str, typer.Option(help="The cache's directory.")] = "./cache",
    split: Annotated[list[str] | None, typer.Option(help="Only these splits; all by default.")] = None,
    outputs: Annotated[str | None, typer.Option(help="embedding,logits; all that it has by default.")] = None,
    encode: Annotated[list[str] | None, typer.Option(help="OUTPUT=float16|float32|topk:K; float16 by default.")] = None,
    temperatures: Annotated[str, typer.Option(help="Where sparse logits are exact.")] = "1,2,4",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per forward pass.")] = 64,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    amp: Precision = "float32",
    weights: Annotated[str | None, typer.Option(help="FILE.safetensors, instead of the model's own.")] = None,
    img_size: Annotated[int | None, typer.Option(min=1, help="Input size in pixels.")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Part of the image that the crop keeps.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest text in tokens.")] = None,
    pool: Annotated[str | None, typer.Option(help="mean, cls or pooler.")] = None,
    model_kwargs: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Only with a 40-digit revision.")] = False,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    id_column: Annotated[str, typer.Option(help="Column of the key, where there is one.")] = "id",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples of each split.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a frozen teacher once over a data set and write a cache. Run it again, and it goes on.

    Example: featurecache extract --teacher vit_base --data imagenet
    """
    from pipelines.extract_cache import extract_cache

    options = {
        "weights": weights,
        "img_size": img_size,
        "crop_pct": crop_pct,
        "max_length": max_length,
        "pool": pool,
        "model_kwargs": key_values(model_kwargs, "--model-kwargs") or None,
        "trust_remote_code": trust_remote_code,
    }
    run = extract_cache(
        teacher=teacher,
        data=_given(data),
        out=out,
        splits=split,
        outputs=names(outputs),
        encode={name: str(value) for name, value in key_values(encode, "--encode").items()},
        temperatures=numbers(temperatures),
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=amp,
        text_column=text_column,
        label_column=label_column,
        id_column=id_column,
        limit=limit,
        **options,
    )
    console.show(
        console.follow(run, interrupted=f"committed rows are kept; go on with\n  {resume_command()}"), as_json=as_json
    )


def probe(
    cache: CacheOption = "./cache",
    labels: Annotated[int | None, typer.Option(min=1, help="How many labels may be seen; all by default.")] = None,
    split: Annotated[str, typer.Option(help="The split whose labels are used.")] = "train",
    output: Annotated[str, typer.Option(help="The output the head stands on.")] = "embedding",
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Part of the labels to stop by.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the head's first weights.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Fit a linear head on cached embeddings and add it to the cache: logits without a teacher pass.

    Example: featurecache probe --cache ./cache --labels 500
    """
    from pipelines.probe import fit_probe

    run = fit_probe(cache=cache, split=split, labels=labels, output=output, validation=validation, seed=seed)
    console.show(console.follow(run, interrupted="nothing was added"), as_json=as_json)


def fit_teacher(
    model: Annotated[str, typer.Option(help="timm:NAME, hf:FOLDER, minilm.")],
    out: Annotated[str, typer.Option(help="Folder for the teacher; `--teacher FOLDER` then reads it.")],
    data: DataOption = None,
    mode: Annotated[str, typer.Option(help="ft: from pretrained weights; fr: from random ones.")] = "ft",
    epochs: Annotated[float, typer.Option(help="Passes over the training samples.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 32,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    validation: Annotated[float, typer.Option(min=0.0, max=0.9, help="Part held out, by key.")] = 0.1,
    img_size: Annotated[int | None, typer.Option(min=1, help="Input size in pixels.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest text in tokens.")] = None,
    weights: Annotated[str | None, typer.Option(help="FILE.safetensors to start from.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    amp: Precision = "float32",
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a model on labels, or train it from scratch, and leave a folder that is a teacher.

    Example: featurecache fit-teacher --model timm:resnet18 --data ./letters --mode fr --img-size 64 --out ./teacher
    """
    from pipelines.fit_teacher import fit_teacher as fit

    run = fit(
        model=model,
        data=_given(data),
        out=out,
        mode=mode,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        validation=validation,
        img_size=img_size,
        max_length=max_length,
        weights=weights,
        seed=seed,
        workers=workers,
        device=device,
        precision=amp,
        text_column=text_column,
        label_column=label_column,
    )
    console.show(console.follow(run, interrupted="no teacher was written"), as_json=as_json)


def resume_command() -> str:
    """The command that is running, to be typed again; under the name that no shell takes for its own."""
    return shlex.join(["featurecache", *sys.argv[1:]])


def _given(data: list[str] | None) -> list[str]:
    if not data:
        raise typer.BadParameter("say what to read: a name, a folder, tars or a text file", param_hint="--data")
    return data
