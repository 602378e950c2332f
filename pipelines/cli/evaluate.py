"""`fc evaluate`: how good a student is."""

from typing import Annotated, Any

import typer

from pipelines.cli import console
from pipelines.cli.options import (
    DataOption,
    DeviceOption,
    JsonFlag,
    MaxInvalid,
    WorkersOption,
    existing_device,
    fraction,
)

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    cache: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="Where the cache is, or each of several, if moved.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="test, val or another; the first there is by default.")
    ] = None,
    data: DataOption = None,
    features: Annotated[
        bool, typer.Option(help="Judge features by neighbours and a linear probe too, which takes longer.")
    ] = True,
    max_invalid: MaxInvalid = "1%",
    workers: WorkersOption = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare a student with its teacher, on data held out.

    Accuracy, agreement, and how good the features are.

    Example: featurecache evaluate runs/bert-2x128 --json
    """
    from pipelines.evaluate import evaluate_run

    found = evaluate_run(
        run=run,
        cache=cache,
        split=split,
        data=data,
        features=features,
        max_invalid=fraction(max_invalid, "--max-invalid"),
        workers=workers,
        device=existing_device(device),
    )
    console.show(console.follow(found, interrupted="nothing was written"), as_json=as_json, layout=_scores)


def _scores(scores: dict[str, Any]) -> str:
    """Student and teacher side by side."""
    lines = [
        f"{scores['student']} ({_size(scores['parameters'])} parameters), taught by {scores['teacher']}",
        f"on {scores['rows']:,} rows of {scores['split']}",
        "",
        f"{'':<24}{'student':>10}{'teacher':>10}",
    ]
    for name, ours, theirs in (
        ("accuracy", "accuracy", "teacher_accuracy"),
        ("nearest neighbours", "neighbours", "teacher_neighbours"),
        ("linear probe", "linear", "teacher_linear"),
    ):
        lines.append(f"{name:<24}{_percent(scores[ours]):>10}{_percent(scores[theirs]):>10}")
    lines += ["", f"{'agreement, top-1':<24}{_percent(scores['agreement']):>10}"]
    for name, value in (("KL, nats", scores["kl"]), ("cosine of embeddings", scores["cosine"])):
        lines.append(f"{name:<24}{_number(value):>10}")
    if each := scores.get("teachers"):
        lines += ["", f"{'teacher':<34}{'accuracy':>10}{'agreement':>10}{'KL':>10}{'cosine':>10}"]
    for name, found in (each or {}).items():
        parts = [_percent(found["teacher_accuracy"]), _percent(found["agreement"])]
        parts += [_number(found["kl"]), _number(found["cosine"])]
        lines.append(f"{name:<34}" + "".join(f"{part:>10}" for part in parts))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters:,}"
