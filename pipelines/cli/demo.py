"""`fc demo`: the main job on real input, in a few minutes."""

from typing import Annotated, Any

import typer

from pipelines.cli import console
from pipelines.cli.options import DeviceOption, JsonFlag

__all__ = ["demo"]


def demo(
    out: Annotated[
        str, typer.Option(help="Where cache and runs go; a demo that stands there is replaced.")
    ] = "./demo-run",
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """The main job on 4,000 real texts, in minutes. MiniLM teaches a two-layer student, and a table compares them.

    Example: featurecache demo --out ./demo-run
    """
    from pipelines.demo import run_demo

    run = run_demo(out=out, device=device)
    console.show(console.follow(run, interrupted="run it again to begin anew"), as_json=as_json, layout=_table)


def _table(result: dict[str, Any]) -> str:
    lines = ["", f"{'on 1,000 test texts':<48}{'accuracy':>9}{'neighbours':>12}{'agrees':>8}{'size':>8}{'texts/s':>9}"]
    for row in result["rows"]:
        agrees = "-" if row["agreement"] is None else f"{row['agreement']:.1%}"
        lines.append(
            f"{row['model']:<48}{row['accuracy']:>9.1%}{row['neighbours']:>12.1%}{agrees:>8}"
            f"{row['parameters']:>6.1f} M{row['texts_per_second']:>9,.0f}"
        )
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result["seconds"].items())
    lines += ["", f"The teacher ran once. Time: {spent}.", f"Cache and runs are in {result['out']}; try:"]
    return "\n".join([*lines, f"  featurecache info {result['out']}/cache"])
