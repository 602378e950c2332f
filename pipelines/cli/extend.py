"""`fc extend`: more of everything for a cache that stands."""

from typing import Annotated

import typer

from pipelines.cli import console
from pipelines.cli.extract import how_to_go_on
from pipelines.cli.options import (
    MACHINE,
    CachePath,
    DataOption,
    DeviceOption,
    JsonFlag,
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

__all__ = ["extend"]


def extend(
    cache: CachePath,
    views: Annotated[
        str | None, typer.Option(metavar="N", help="+8 for eight more; 16 for 16 in all.", rich_help_panel=VIEWS)
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another teacher, or one of the cache's; all by default.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only these, or one that is not there yet.")
    ] = None,
    data: DataOption = None,
    outputs: Outputs = None,
    encode: Encode = None,
    temperatures: Temperatures = "1,2,4",
    augment: AugmentOption = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**53 - 1, metavar="N", help="Of the first random views.", rich_help_panel=VIEWS),
    ] = None,
    store_inputs: StoreInputs = None,
    weights: Weights = None,
    img_size: ImgSize = None,
    crop_pct: CropPct = None,
    max_length: MaxLength = None,
    pool: Pool = None,
    model_kwargs: ModelKwargs = None,
    trust_remote_code: TrustRemoteCode = False,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples per forward pass.", rich_help_panel=MACHINE)
    ] = 64,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Add views, outputs, a teacher or a split to a cache.

    Nothing that is in it changes. Run it again after an interruption, and it goes on.

    Example: featurecache extend ./cache --views +8
    """
    from pipelines.extend import extend_cache

    run = extend_cache(
        cache=cache,
        views=views,
        augment=augment,
        seed=seed,
        outputs=names(outputs),
        encode=encodings(encode),
        temperatures=numbers(temperatures),
        teacher=teacher,
        splits=names(split),
        data=data,
        store_inputs=store_inputs,
        batch_size=batch_size,
        workers=workers,
        device=existing_device(device),
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
    console.show(console.follow(run, interrupted=lambda: how_to_go_on(cache)), as_json=as_json)
