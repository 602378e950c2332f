"""`fc train-student` and `fc evaluate`: a student from a cache, and how good it is."""

from typing import Annotated, Any

import typer

from pipelines.cli import console
from pipelines.cli.extract import resume_command
from pipelines.cli.options import (
    CacheOption,
    DataOption,
    DeviceOption,
    JsonFlag,
    Precision,
    WorkersOption,
    read_json_file,
)

__all__ = ["evaluate", "train_student"]


def train_student(
    cache: CacheOption = "./cache",
    student: Annotated[str | None, typer.Option(help="A timm name, or bert:LAYERSxWIDTH.")] = None,
    objective: Annotated[str | None, typer.Option(help='Such as "kl:1.0,align-uniform:1.0,ce:1.0".')] = None,
    data: DataOption = None,
    out: Annotated[str | None, typer.Option(help="The run's directory; ./runs/STUDENT by default.")] = None,
    split: Annotated[str, typer.Option(help="The split to train on.")] = "train",
    epochs: Annotated[float, typer.Option(help="Passes over the training rows.")] = 30,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 64,
    lr: Annotated[float | None, typer.Option(help="Peak; 1e-3 for images, 5e-4 for texts by default.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Of weight matrices only.")] = 0.05,
    warmup: Annotated[float, typer.Option(help="Part of the steps in which the rate rises.")] = 0.05,
    clip: Annotated[float, typer.Option(help="Largest gradient norm; 0 for none.")] = 1.0,
    amp: Precision = "float32",
    seed: Annotated[int, typer.Option(help="Of weights, order, dropout and negatives.")] = 0,
    validation: Annotated[float, typer.Option(help="Part of the rows held out, by key.")] = 0.1,
    labels: Annotated[int | None, typer.Option(min=1, help="How many labels may be seen; all by default.")] = None,
    missing: Annotated[str, typer.Option(help="Samples not in the cache: refuse or skip.")] = "refuse",
    max_invalid: Annotated[str, typer.Option(help="Largest part of invalid rows.")] = "1%",
    class_map: Annotated[str | None, typer.Option(help="JSON file: data class to teacher class.")] = None,
    img_size: Annotated[
        int | None, typer.Option(min=1, help="The student's image size; the teacher's by default.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest text; the teacher's by default.")] = None,
    init_from: Annotated[str | None, typer.Option(help="A trained model of the same shape to start from.")] = None,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a small model from a cache. No teacher is loaded.

    Example: featurecache train-student --cache ./cache --student bert:2x128 --objective "kl:1.0,ce:1.0"
    """
    from pipelines.train import train_student as train

    run = train(
        cache=cache,
        student=student,
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
        seed=seed,
        validation=validation,
        labels=labels,
        missing=missing,
        max_invalid=_fraction(max_invalid),
        class_map=read_json_file(class_map),
        img_size=img_size,
        max_length=max_length,
        init_from=init_from,
        workers=workers,
        device=device,
        resume=resume,
    )
    again = resume_command() + ("" if resume else " --resume")
    console.show(console.follow(run, interrupted=f"go on from the last checkpoint with\n  {again}"), as_json=as_json)


def evaluate(
    run: Annotated[str, typer.Argument(help="The directory of a finished run.")],
    cache: Annotated[str | None, typer.Option(help="Where the cache is, if it was moved.")] = None,
    split: Annotated[str | None, typer.Option(help="test, val or another; the first there is by default.")] = None,
    data: DataOption = None,
    max_invalid: Annotated[str, typer.Option(help="Largest part of invalid rows.")] = "1%",
    workers: WorkersOption = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare a trained student with its teacher: accuracy, agreement, features.

    Example: featurecache evaluate runs/bert-2x128 --json
    """
    from pipelines.evaluate import evaluate_run

    found = evaluate_run(
        run=run,
        cache=cache,
        split=split,
        data=data,
        max_invalid=_fraction(max_invalid),
        workers=workers,
        device=device,
    )
    console.show(console.follow(found, interrupted="nothing was written"), as_json=as_json, layout=_scores)


def _fraction(text: str) -> float:
    """ "1%" or "0.01" -> 0.01."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a part, such as 1% or 0.01") from None


def _scores(scores: dict[str, Any]) -> str:
    """Student and teacher side by side."""
    lines = [
        f"{scores['student']} ({scores['parameters'] / 1e6:.1f} M parameters), taught by {scores['teacher']}",
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
        lines.append(f"{name:<24}{'-' if value is None else format(value, '.4f'):>10}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
