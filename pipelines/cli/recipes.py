"""`fc run`: a whole method, from data to a page of results."""

import statistics
from typing import Annotated, Any

import typer

from pipelines.cli import console
from pipelines.cli.extract import resume_command
from pipelines.cli.options import DeviceOption, JsonFlag, RequiredData, WorkersOption, existing_device

__all__ = ["run"]


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name (list recipes), or a .toml file of one.")],
    data: RequiredData,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where caches, students and results go.")],
    scale: Annotated[str, typer.Option(metavar="NAME", help="tiny, small or paper.")] = "small",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")
    ] = None,
    varied: Annotated[
        list[str] | None, typer.Option("--vary", metavar="SECTION.KEY=V1,V2", help="A case of each.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the stages, and which are done.")] = False,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Carry out a recipe: caches, students, a page of results.

    The same command goes on with what was interrupted. DIR/results.html shows what came of it.

    Example: featurecache run pretrained-distillation --data ./texts --out ./out
    """
    from pipelines.recipes.run import run_recipe

    carried_out = run_recipe(
        recipe=recipe,
        data=data,
        out=out,
        scale=scale,
        changes=changes or (),
        varied=varied or (),
        device=existing_device(device),
        workers=workers,
        dry_run=dry_run,
    )
    found = console.follow(carried_out, interrupted=f"go on with the same command:\n  {resume_command()}")
    console.show(found, as_json=as_json, layout=None if dry_run else _table)


def _table(result: dict[str, Any]) -> str:
    lines: list[str] = []
    for case in result["cases"]:
        varied = ", ".join(f"{name} {value}" for name, value in case["settings"].items())
        teacher = case["teacher"]
        known = "" if teacher["accuracy"] is None else f", accuracy {teacher['accuracy']:.1%}"
        lines += ["", f"{varied}; " * bool(varied) + f"teacher {teacher['name']}{known}, {teacher['rows']:,} rows"]
        lines.append(f"{'arm':<16}{'accuracy':>9}{'±':>7}{'agreement':>11}{'updates':>9}{'seeds':>7}")
        lines += [_row(arm) for arm in case["arms"]]
    return "\n".join([*lines, "", f"{result['results']}, {result['page']}; a student: {result['student']}"])


def _row(arm: dict[str, Any]) -> str:
    mean, deviation = _spread(arm["accuracy"])
    agreement, _ = _spread(arm["agreement"])
    updates = sum(stage["updates"] for stage in arm["stages"])
    return f"{arm['arm']:<16}{mean:>9}{deviation:>7}{agreement:>11}{updates:>9,}{len(arm['seeds']):>7}"


def _spread(values: list[float | None]) -> tuple[str, str]:
    """Mean and standard deviation over seeds, in per cent."""
    known = [value for value in values if value is not None]
    if not known:
        return "-", "-"
    mean = statistics.mean(known)
    return f"{mean:.1%}", f"{100 * statistics.stdev(known):.1f}" if len(known) > 1 else "-"
