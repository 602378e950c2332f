"""`fc export`: the student of a run, for other libraries."""

from typing import Annotated, Any

import typer

from pipelines.cli import console
from pipelines.cli.options import JsonFlag, names

__all__ = ["export"]

CARD = "The card"


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND", help="safetensors, timm, transformers, onnx, or several.", show_default="safetensors"
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="RUN/export/KIND by default.")] = None,
    teacher_license: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the teacher, where the cache does not know it.", rich_help_panel=CARD),
    ] = None,
    data_license: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the data it learned from.", rich_help_panel=CARD)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a student as timm, transformers or ONNX loads it.

    What was written is loaded again, compared with the student, and described in a README.md.

    Example: featurecache export runs/bert-2x128 --to transformers,onnx
    """
    from pipelines.export import export_run

    exporting = export_run(
        run=run,
        to=names(to) or ["safetensors"],
        out=out,
        teacher_license=teacher_license,
        data_license=data_license,
    )
    console.show(console.follow(exporting, interrupted="nothing was written"), as_json=as_json, layout=_written)


def _written(result: dict[str, Any]) -> str:
    lines = [f"{result['student']}, read its README.md first"]
    for kind, facts in result["exports"].items():
        difference = facts["largest_difference"]
        same = "the same outputs" if not difference else f"outputs differ by at most {difference:.1g}"
        lines.append(f"  {kind:<14}{facts['path']}  ({console.size(facts['bytes'])}, {same})")
    return "\n".join(lines)
