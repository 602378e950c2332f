"""`fc info`, `fc status`, `fc list`: what is there."""

import re
from typing import Annotated

import typer

from featurecache.errors import UnknownNameError
from featurecache.types import Json
from pipelines.cli import console
from pipelines.cli.options import CachePath, JsonFlag

__all__ = ["info", "list_names", "status"]

KINDS = ("teachers", "sources", "augmentations", "encodings", "objectives", "students", "recipes")


def info(cache: CachePath, as_json: JsonFlag = False) -> None:
    """What a cache holds and how it was made.

    Example: featurecache info ./cache
    """
    from pipelines.describe import describe_cache

    console.show(describe_cache(cache), as_json=as_json)


def status(cache: CachePath, as_json: JsonFlag = False) -> None:
    """How far an extraction is. Exit code 3 while rows are missing.

    Example: featurecache status ./cache
    """
    from pipelines.describe import describe_progress

    facts = describe_progress(cache)
    console.show(facts, as_json=as_json)
    if not facts["complete"]:
        running = "an extraction is at work on it" if facts["under_way"] else ""
        console.note(f"not complete: {running or 'run the same `featurecache extract` again to go on'}")
        raise typer.Exit(3)


def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")],
    as_json: JsonFlag = False,
) -> None:
    """The names that can be used, with what each is.

    Example: featurecache list objectives
    """
    if kind not in KINDS:
        raise UnknownNameError("list", kind, KINDS)
    console.show(_names(kind), as_json=as_json)


def _names(kind: str) -> Json:
    if kind == "teachers":
        from featurecache.teachers.resolve import SHORT_NAMES

        anything = {"timm:NAME": "any timm model", "hf:NAME[@REVISION]": "any transformers encoder, hub or folder"}
        return {**SHORT_NAMES, **anything, "torch:MODULE:CALLABLE": "any PyTorch model of your own"}
    if kind == "students":
        from student.models.build import STUDENTS

        return {name: f"{modality}s" for name, modality in STUDENTS.items()}
    if kind == "recipes":
        from pipelines.recipes.recipe import known_recipes

        return known_recipes()
    if kind == "objectives":
        from student.objectives import OBJECTIVES

        found = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
        return {name: f"needs {', '.join(map(_readable, item.needs))}; {item.paper}" for name, item in found.items()}
    if kind == "augmentations":
        from featurecache.augment import AUGMENTATIONS, ImageAugmentation

        found = {name: AUGMENTATIONS.get(name) for name in AUGMENTATIONS}
        steps = {
            name: ", ".join(operation.name for operation in item.operations) or "the plain view again"
            for name, item in found.items()
            if isinstance(item, ImageAugmentation)
        }
        mixed = {"NAME+mix": "any of these, and some samples mixed with others by mixup or cutmix"}
        return {
            **steps,
            **mixed,
            "FILE.toml": "one of your own",
            "mask": "texts: 15 % of the tokens masked, as BERT does",
        }
    if kind == "sources":
        from featurecache.sources import SOURCES

        return {name: (SOURCES.get(name).__doc__ or "").strip().splitlines()[0] for name in SOURCES}
    return {
        "float16": "as it is, with a relative error of about 5e-4, up to 65,504; the default",
        "float32": "as it is",
        "int8": "a quarter of float32: int8:row or int8:column, whichever is measured to be closer",
        "int8:row": "a scale for each row, for normalised embeddings",
        "int8:column": "a scale for each column, where some columns are much larger than others",
        "topk:K": "the K largest logits, and the logsumexp of all of them; topk:K@1,2,4 names the temperatures",
        "sampled:N": "N classes drawn by their probabilities, an unbiased estimate of all; sampled:N@2 draws at "
        "temperature 2",
        "topk:K+sampled:N": "the K largest exactly, and N draws from the others: unbiased too, and closer",
    }


def _readable(need: str) -> str:
    """ "hidden.{layer}" as "hidden.LAYER", of which the option is the number."""
    return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), need)
