"""What objectives on layers share: which layers are meant, whether a pair of them fits, and which tokens are real."""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from featurecache.errors import UsageError
from featurecache.layers import deepest_layer
from featurecache.types import OutputSpec
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Mask

__all__ = ["filled", "layer_pair", "query_key_value", "real_tokens"]

_OPTION = re.compile(r"\{(\w+)\}")


def filled(pattern: str, options: Mapping[str, int | float | str], available: Collection[str]) -> str:
    """The name that a pattern such as "hidden.{layer}" stands for: with the option's number, of which -1 is the deepest
    of the `available` layers; "hidden.last" where there is none. A name without a pattern is itself."""
    match = _OPTION.search(pattern)
    if match is None:
        return pattern
    number, kind = int(options[match[1]]), pattern.partition(".")[0]
    if number == -1:
        return deepest_layer(kind, available) or f"{kind}.last"
    return _OPTION.sub(str(number), pattern)


def layer_pair(
    name: str, kind: str, dimensions: Dimensions, *, layer: int, student_layer: int
) -> tuple[OutputSpec, OutputSpec]:
    """The teacher's and the student's layer of an objective of that name on "hidden" or "qkv"; -1 is the deepest.

    Raises UsageError where there is no such layer, or the images of the two have other numbers of tokens.
    """
    target = filled(f"{kind}.{{layer}}", {"layer": layer}, dimensions.outputs)
    source = filled(f"{kind}.{{layer}}", {"layer": student_layer}, dimensions.layers)
    for wanted, there, whose in ((target, dimensions.outputs, "cache"), (source, dimensions.layers, "student")):
        if wanted not in there:
            known = ", ".join(other for other in there if other.startswith(f"{kind}.")) or f"no {kind} of any layer"
            option = "layer" if whose == "cache" else "student_layer"
            raise UsageError(
                f"{name}: the {whose} has no {wanted}", hint=f"it has {known}: choose with {option}=NUMBER"
            )
    teacher, student = dimensions.outputs[target], dimensions.layers[source]
    if teacher.tokens != student.tokens:
        raise UsageError(
            f"{name}: the teacher's {target} has {teacher.tokens} tokens for each image, the student's {source} has"
            f" {student.tokens}",
            hint="choose a student, a student_layer or an --img-size that gives it as many",
        )
    return teacher, student


def real_tokens(batch: Batch, student: Tensor, teacher: Tensor) -> Mask:
    """bool (batch, tokens): which of the tokens of two outputs (batch, tokens, width) are there; of images all.

    Raises UsageError where the two do not have the same tokens.
    """
    if student.shape[:2] != teacher.shape[:2]:
        message = f"the teacher has {teacher.shape[1]} tokens in a batch, and the student {student.shape[1]}"
        raise UsageError(message, hint="the student must have the teacher's own tokens: leave out --max-length")
    mask = batch.inputs.get("mask")
    return torch.ones(student.shape[:2], dtype=torch.bool, device=student.device) if mask is None else mask


def query_key_value(projections: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, tokens, 3 * width) -> queries, keys and values, each (batch, heads, tokens, width / heads)."""
    query, key, value = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in projections.chunk(3, dim=2))
    return query, key, value
