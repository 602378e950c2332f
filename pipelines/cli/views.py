"""`fc views`: to see what students see."""

from typing import Annotated

import typer

from featurecache.types import Json
from pipelines.cli import console
from pipelines.cli.options import CachePath, DataOption, JsonFlag
from pipelines.visible import shortened, visible

__all__ = ["views"]

_MOST_LETTERS = 120
"""Of a name; --json has all of them."""


def views(
    cache: CachePath,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Which sample; the first by default. Also several.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="PNG", help="Of images: where the sheet goes; views.png by default.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Of which split.")] = "train",
    number: Annotated[int, typer.Option("--views", min=1, metavar="N", help="At most so many of each sample.")] = 16,
    img_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=4096, metavar="PIXELS", help="The student's; that of stored inputs, or half the teacher's."
        ),
    ] = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a sample's views as teacher and student see them.

    Images are drawn on a contact sheet, with the teacher's top classes under each view, or the nearest rows where there
    are no logits. Texts are printed, {was -> is} where a view changes a token.

    Example: featurecache views ./cache --key train/00001 --out sheet.png
    """
    from pipelines.views import show_views

    facts = show_views(cache=cache, split=split, keys=key, views=number, data=data, out=out, img_size=img_size)
    console.show(facts, as_json=as_json, layout=_layout)


def _layout(facts: Json) -> str:
    """The sheet's facts, then each sample and its views."""
    named = {"cache": facts["cache"], "split": facts["split"], "teacher": _name(facts["teacher"])}
    named |= {"views": str(facts["views"]) + (f", {facts['augmentation']}" if facts["augmentation"] else "")}
    named |= {"samples": facts["samples_from"]}
    if "out" in facts:
        named["out"] = f"{facts['out']}, {facts['width']:,} x {facts['height']:,} pixels"
        named["teacher sees"] = f"{facts['teacher_size']:,} pixels"
        named["student sees"] = f"{facts['student_size']:,} pixels, {facts['student_size_is']}"
        if facts["student_samples_from"] != facts["samples_from"]:
            named["student sees"] += f", of {facts['student_samples_from']}"
    named |= {"under each": _kind(facts)}
    width = max(map(len, named))
    lines = [f"{name:<{width}}  {value}" for name, value in named.items()]
    for sample in facts["samples"]:
        lines += _sample(sample, facts["split"])
    return "\n".join(visible(line) for line in lines)  # a name with a line break in it stays on its line


def _name(text: str) -> str:
    return shortened(text, _MOST_LETTERS)


def _kind(facts: Json) -> str:
    by = "" if facts["output_of"] == facts["teacher"] else f" of {_name(facts['output_of'])}"
    if "among" in facts:
        return f"nearest of {facts['among']:,} rows by {facts['output']}{by}, with their cosines"
    at = "" if facts["temperature"] == 1 else f" at temperature {facts['temperature']:g}"
    return f"top classes by {facts['output']}{by}, with their probabilities{at}"


def _sample(sample: Json, split: str) -> list[str]:
    label = "" if sample["label"] is None else f", label {_name(sample['label'])}"
    lines = ["", f"{_name(sample['key'])} (row {sample['row']:,} of {split}{label})"]
    if sample.get("text"):
        lines += [f"  text    {sample['text']}"]
    for view in sample["views"]:
        head = f"  view {view['view']:<3}"
        lines += [f"{head}{_said(view)}"]
        if "mixed_with" in view:
            lines += [f"{'':{len(head)}}{view['own_share']:.0%} own, mixed with {_name(view['mixed_with'])}"]
        if "tokens" in view:
            lines += [f"{'':{len(head)}}{_tokens(view)}"]
    return lines


def _said(view: Json) -> str:
    if "problem" in view:
        return str(view["problem"])
    if "classes" in view:
        return ", ".join(f"{_name(name)} {value:.1%}" for name, value in view["classes"])
    return ", ".join(f"{_name(name)} {value:.3f}" for name, value in view["neighbours"])


def _tokens(view: Json) -> str:
    """Each token as it is, {was -> is} where another one stood, {is} where the view chose it and left it as it is."""
    chosen = {item["position"]: item["was"] for item in view["chosen"]}
    words = []
    for at, token in enumerate(view["tokens"]):
        was = chosen.get(at)
        if was is None:
            words.append(token)
        else:
            words.append(f"{{{token}}}" if was == token else f"{{{was} -> {token}}}")
    return " ".join(words)
