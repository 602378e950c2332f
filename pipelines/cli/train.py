"""`fc train-student`: students from a cache."""

from typing import Annotated, Literal

import typer

from pipelines.cli import console
from pipelines.cli.extract import resume_command
from pipelines.cli.options import (
    DATA,
    MACHINE,
    MODEL,
    TRAINING,
    DataOption,
    DeviceOption,
    JsonFlag,
    MaxInvalid,
    WorkersOption,
    existing_device,
    fraction,
    names,
    read_json_file,
)
from pipelines.events import is_first_process

__all__ = ["train_student"]


def train_student(
    cache: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="./cache by default; more caches have more teachers of the same samples."),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A timm name or bert:LAYERSxWIDTH; several learn from the same batches."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="TERMS", help="Such as kl:1,ce:0.5; all that the cache serves by default.")
    ] = None,
    data: DataOption = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="The run; ./runs/STUDENT by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    img_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Input size; the teacher's by default.", rich_help_panel=MODEL),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, metavar="TOKENS", help="Longest text; the teacher's by default.", rich_help_panel=MODEL),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Start from a run, a folder, a hub name, published.", rich_help_panel=MODEL),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Of texts; --init-from's or the teacher's by default.", rich_help_panel=MODEL
        ),
    ] = None,
    epochs: Annotated[
        float, typer.Option(metavar="N", help="Passes over the training rows.", rich_help_panel=TRAINING)
    ] = 30,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Optimizer steps, instead of epochs.", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples per step.", rich_help_panel=TRAINING)
    ] = 64,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="Peak; 1e-3 for images, 5e-4 for texts by default.", rich_help_panel=TRAINING
        ),
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(min=0, metavar="RATE", help="Of weight matrices only.", rich_help_panel=TRAINING)
    ] = 0.05,
    warmup: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="PART", help="Part of the steps that warm up.", rich_help_panel=TRAINING),
    ] = 0.05,
    clip: Annotated[
        float, typer.Option(min=0, metavar="NORM", help="Largest gradient norm; 0 for none.", rich_help_panel=TRAINING)
    ] = 1.0,
    accumulate: Annotated[
        int, typer.Option(min=1, metavar="N", help="Batches that make one step.", rich_help_panel=TRAINING)
    ] = 1,
    layer_decay: Annotated[
        float, typer.Option(metavar="PART", help="Rate of a layer, of the one above it.", rich_help_panel=TRAINING)
    ] = 1.0,
    ema: Annotated[
        float, typer.Option(metavar="DECAY", help="Validate and keep averaged weights.", rich_help_panel=TRAINING)
    ] = 0.0,
    patience: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Stop after N validations no better; keep the best.", rich_help_panel=TRAINING
        ),
    ] = 0,
    shuffle: Annotated[
        Literal["auto", "global", "blocks"],
        typer.Option(metavar="HOW", help="global, or blocks for more than memory holds.", rich_help_panel=TRAINING),
    ] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of weights, order, dropout, negatives.", rich_help_panel=TRAINING)
    ] = 0,
    views: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Only the first N views; all by default.", rich_help_panel=DATA),
    ] = None,
    views_per_sample: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Views of a sample in one batch, decoded once.", rich_help_panel=DATA),
    ] = 1,
    check_inputs: Annotated[
        Literal["all", "sample", "off"],
        typer.Option(metavar="HOW", help="Compare with what the teacher saw: all, sample, off.", rich_help_panel=DATA),
    ] = "sample",
    split: Annotated[str, typer.Option(metavar="NAME", help="The split to train on.", rich_help_panel=DATA)] = "train",
    validation: Annotated[
        float, typer.Option(min=0, metavar="PART", help="Part of the rows held out, by key.", rich_help_panel=DATA)
    ] = 0.1,
    labels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many labels may be seen; all by default.", rich_help_panel=DATA),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many samples to train on; all by default.", rich_help_panel=DATA),
    ] = None,
    missing: Annotated[
        Literal["refuse", "skip"],
        typer.Option(metavar="WHAT", help="Samples not in the cache: refuse or skip.", rich_help_panel=DATA),
    ] = "refuse",
    max_invalid: MaxInvalid = "1%",
    class_map: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON: data class to teacher class.", rich_help_panel=DATA)
    ] = None,
    teachers: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Parts to learn from, a,b or all; one by default.", rich_help_panel=MODEL),
    ] = None,
    balance: Annotated[
        Literal["none", "standardise", "phi-s"] | None,
        typer.Option(metavar="HOW", help="Scale of embeddings: none, standardise, phi-s.", rich_help_panel=TRAINING),
    ] = None,
    ensemble: Annotated[
        Literal["logits", "probabilities"] | None,
        typer.Option(metavar="WHAT", help="Average these over teachers; a head each if not.", rich_help_panel=TRAINING),
    ] = None,
    targets: Annotated[
        Literal["auto", "device", "stream"],
        typer.Option(metavar="WHERE", help="Held on the device, streamed, or as they fit.", rich_help_panel=TRAINING),
    ] = "auto",
    workers: WorkersOption = None,
    device: DeviceOption = None,
    amp: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            metavar="DTYPE", help="float32, bfloat16, float16; bfloat16 on GPUs by default.", rich_help_panel=MACHINE
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Through torch.compile, where that works.", rich_help_panel=MACHINE)
    ] = False,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--no-channels-last", help="Images by pixels; on GPUs by default.", rich_help_panel=MACHINE
        ),
    ] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: FSDP2 instead of DDP.", rich_help_panel=MACHINE)
    ] = False,
    track: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Curves also to tensorboard, wandb, trackio, ...")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a small model from a cache. No teacher is loaded.

    Everything has a default: `featurecache train-student --cache ./cache` alone works.

    Example: featurecache train-student --student bert:2x128 --objective kl:1,ce:0.5
    """
    from pipelines.train import train_student as train

    run = train(
        cache="./cache" if not cache else cache[0] if len(cache) == 1 else tuple(cache),
        student=student or None,
        objective=objective,
        data=tuple(data) if data else None,
        out=out,
        split=split,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=lr,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        precision=amp,
        accumulate=accumulate,
        layer_decay=layer_decay,
        ema=ema,
        patience=patience,
        shuffle=shuffle,
        seed=seed,
        views=views,
        views_per_sample=views_per_sample,
        check_inputs=check_inputs,
        validation=validation,
        labels=labels,
        missing=missing,
        max_invalid=fraction(max_invalid, "--max-invalid"),
        class_map=read_json_file(class_map),
        img_size=img_size,
        max_length=max_length,
        init_from=init_from,
        tokenizer=tokenizer,
        samples=samples,
        teachers=tuple(names(teachers) or ()) or None,
        balance=balance,
        ensemble=ensemble,
        targets=targets,
        workers=workers,
        device=existing_device(device),
        compile=compile,
        channels_last=channels_last,
        shard=shard,
        track=names(track) or (),
        resume=resume,
    )
    again = resume_command() + ("" if resume else " --resume")
    found = console.follow(run, interrupted=f"go on from the last checkpoint with\n  {again}")
    if is_first_process():
        several = {} if as_json else {summary["run"]: summary for summary in found.get("runs", ())}
        console.show(several or found, as_json=as_json)
