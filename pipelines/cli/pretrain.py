"""`fc pretrain`: a small BERT from texts alone."""

from typing import Annotated

import typer

from pipelines.cli import console
from pipelines.cli.extract import resume_command
from pipelines.cli.options import (
    MACHINE,
    MODEL,
    TRAINING,
    DeviceOption,
    JsonFlag,
    LimitOption,
    Precision,
    RequiredData,
    TextColumn,
    WorkersOption,
    existing_device,
    names,
)

__all__ = ["pretrain"]


def pretrain(
    data: RequiredData,
    out: Annotated[str, typer.Option(metavar="DIR", help="The run; --init-from DIR starts a student from it.")],
    student: Annotated[
        str, typer.Option(metavar="NAME", help="bert:LAYERSxWIDTH.", rich_help_panel=MODEL)
    ] = "bert:4x256",
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A tokenizer.json; else one is trained.", rich_help_panel=MODEL),
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(min=1, metavar="N", help="Word pieces of one that is trained.", rich_help_panel=MODEL)
    ] = 30_522,
    max_length: Annotated[
        int, typer.Option(min=3, metavar="TOKENS", help="Longest text; the rest is left out.", rich_help_panel=MODEL)
    ] = 128,
    epochs: Annotated[float, typer.Option(metavar="N", help="Passes over the texts.", rich_help_panel=TRAINING)] = 40,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Optimizer steps, instead of epochs.", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Texts per step.", rich_help_panel=TRAINING)
    ] = 256,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Peak learning rate.", rich_help_panel=TRAINING)] = 1e-3,
    weight_decay: Annotated[
        float, typer.Option(min=0, metavar="RATE", help="Of weight matrices only.", rich_help_panel=TRAINING)
    ] = 0.01,
    warmup: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="PART", help="Part of the steps that warm up.", rich_help_panel=TRAINING),
    ] = 0.05,
    validation: Annotated[
        float, typer.Option(min=0, metavar="PART", help="Part of the texts held out, by key.", rich_help_panel=TRAINING)
    ] = 0.1,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of weights, order, dropout, masks.", rich_help_panel=TRAINING)
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    limit: LimitOption = None,
    text_column: TextColumn = None,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    amp: Precision = "float32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Through torch.compile, where that works.", rich_help_panel=MACHINE)
    ] = False,
    track: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Curves also to tensorboard, wandb, trackio, ...")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Pre-train a small BERT on texts: masked language modelling.

    What is left is a plain transformers folder, DIR/student.

    Example: featurecache pretrain --data ./texts --out ./runs/pretrained
    """
    from pipelines.pretrain import pretrain_student

    run = pretrain_student(
        data=data,
        out=out,
        student=student,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        max_length=max_length,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=lr,
        weight_decay=weight_decay,
        warmup=warmup,
        validation=validation,
        precision=amp,
        seed=seed,
        resume=resume,
        limit=limit,
        text_column=text_column,
        workers=workers,
        device=existing_device(device),
        compile=compile,
        track=names(track) or (),
    )
    again = resume_command() + ("" if resume else " --resume")
    found = console.follow(run, interrupted=f"go on from the last checkpoint with\n  {again}")
    console.show(found, as_json=as_json)
