"""Options of the commands that run a teacher."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pipelines.cli.options import MODEL, key_values

__all__ = [
    "OUTPUTS",
    "VIEWS",
    "AugmentOption",
    "CropPct",
    "Encode",
    "ImgSize",
    "MaxLength",
    "ModelKwargs",
    "Outputs",
    "Pool",
    "StoreInputs",
    "Temperatures",
    "TrustRemoteCode",
    "Weights",
    "encodings",
    "teacher_options",
]

OUTPUTS = "Outputs"
VIEWS = "Views and inputs"

Outputs = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Only these: embedding,logits,hidden.6,qkv.last.", rich_help_panel=OUTPUTS),
]
Encode = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OUTPUT=SPEC",
        help="float16 (the default), float32, int8, topk:K or sampled:N: see list encodings.",
        rich_help_panel=OUTPUTS,
    ),
]
Temperatures = Annotated[
    str, typer.Option(metavar="NUMBERS", help="Where sparse logits are exact.", rich_help_panel=OUTPUTS)
]
AugmentOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What makes them: see list augmentations; or FILE.toml.",
        show_default="standard; texts: mask",
        rich_help_panel=VIEWS,
    ),
]
StoreInputs = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Keep the images too, at this size.", rich_help_panel=VIEWS),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="FILE.safetensors, instead of the model's own.", rich_help_panel=MODEL),
]
ImgSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Input size; the model's by default.", rich_help_panel=MODEL),
]
CropPct = Annotated[
    float | None, typer.Option(metavar="PART", help="Part of the image that the crop keeps.", rich_help_panel=MODEL)
]
MaxLength = Annotated[int | None, typer.Option(min=2, metavar="TOKENS", help="Longest text.", rich_help_panel=MODEL)]
Pool = Annotated[str | None, typer.Option(metavar="NAME", help="mean, cls, last or pooler.", rich_help_panel=MODEL)]
ModelKwargs = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument of the model.", rich_help_panel=MODEL)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the model's code; needs a full revision.", rich_help_panel=MODEL),
]


def encodings(items: Sequence[str] | None) -> dict[str, str]:
    """["logits=topk:64"] -> {"logits": "topk:64"}. Raises UsageError."""
    return {name: str(value) for name, value in key_values(items, "--encode").items()}


def teacher_options(
    *,
    weights: str | None,
    img_size: int | None,
    crop_pct: float | None,
    max_length: int | None,
    pool: str | None,
    model_kwargs: Sequence[str] | None,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """What `load_teacher` takes besides the name."""
    return {
        "weights": weights,
        "img_size": img_size,
        "crop_pct": crop_pct,
        "max_length": max_length,
        "pool": pool,
        "model_kwargs": key_values(model_kwargs, "--model-kwargs") or None,
        "trust_remote_code": trust_remote_code,
    }
