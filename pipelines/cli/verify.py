"""`fc verify`: whether a cache is what it was."""

from typing import Annotated

import typer

from pipelines.cli import console
from pipelines.cli.options import MODEL, DataOption, DeviceOption, JsonFlag, existing_device, fraction, key_values

__all__ = ["verify"]


def verify(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="The cache's directory.")],
    sample: Annotated[
        str, typer.Option(metavar="SHARE", help="Read only so much of the payloads, such as 1%; all JSON always.")
    ] = "100%",
    recompute: Annotated[
        int, typer.Option(min=0, metavar="N", help="Also run the teacher again on N rows of each split.")
    ] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For --recompute; by default as the cache says.", rich_help_panel=MODEL),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="FILE.safetensors, if it was made so.", rich_help_panel=MODEL)
    ] = None,
    model_kwargs: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument of the model.", rich_help_panel=MODEL)
    ] = None,
    data: DataOption = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every byte of a cache. Exit code 5 if something is wrong.

    With --recompute, 5 too if the teacher's outputs have a mean cosine below 0.999 to the stored ones, or agree on the
    largest class in less than 99% of the rows; 4 if the teacher or the data are others.

    Example: featurecache verify ./cache --sample 1%
    """
    from pipelines.verify import verify_cache

    run = verify_cache(
        cache=cache,
        sample=fraction(sample, "--sample"),
        recompute=recompute,
        teacher=teacher,
        weights=weights,
        model_kwargs=key_values(model_kwargs, "--model-kwargs") or None,
        data=data,
        device=existing_device(device),
    )
    facts = console.follow(run, interrupted="nothing was changed")
    findings = facts["findings"]
    if not as_json:
        facts["sample"] = f"{facts['sample']:.4g}" if facts["sample"] < 1 else "all"
    console.show(facts if as_json else {name: facts[name] for name in facts if name != "findings"}, as_json=as_json)
    for line in findings:
        console.note(f"  {line}")
    if facts["problems"] > len(findings):
        console.note(f"  and {facts['problems'] - len(findings):,} more")
    if findings:
        console.note("restore these from a copy, or see docs/guarantees.md, After exit code 5")
    elif not facts["complete"]:
        console.note("not finished: what is there is sound; `featurecache status` says what is missing")
    if not facts["ok"]:
        raise typer.Exit(5)
