"""`fc report`: the page of a recipe's results, written again."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli import console
from pipelines.cli.options import JsonFlag

__all__ = ["report"]


def report(
    run: Annotated[str, typer.Argument(metavar="DIR", help="The --out of a recipe's run.")],
    as_json: JsonFlag = False,
) -> None:
    """Write the page of a recipe's results again.

    DIR/results.html is made from DIR/results.json and the runs that it names; nothing is trained or evaluated.

    Example: featurecache report runs/pretrained-distillation
    """
    from pipelines.recipes.page import write_page

    console.show({"page": str(write_page(Path(run)))}, as_json=as_json, layout=lambda facts: facts["page"])
