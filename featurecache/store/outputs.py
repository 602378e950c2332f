"""The outputs of one split by name, and how each is read: what a teacher gave, and what probes make of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurecache.encodings import Encoding, is_sparse, make_encoding
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.layout import EncodedOutput, PartSpec
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import read_asset
from featurecache.store.view_parts import ViewParts
from featurecache.types import OutputSpec

if TYPE_CHECKING:
    from torch import Tensor

    from featurecache.store.gather import Column

__all__ = ["Output", "find_outputs", "group_by_teacher", "open_column"]


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a split."""

    spec: OutputSpec
    part: PartReader
    """The part that gives it: a teacher's, or a probe."""
    source: ViewParts
    """The teacher's parts whose arrays it is read from: its own, or those behind the probe."""
    kept: EncodedOutput
    """What those arrays hold: the output itself, or the embedding that the probe's head is applied to."""


def find_outputs(
    objects: LocalObjects, teachers: Collection[PartReader], probes: Iterable[PartSpec]
) -> dict[str, Output]:
    """The first teacher's outputs have plain names and those of later ones are "part/embedding"; a probe's logits take
    the plain name, and what had it becomes "part/logits".

    Of the probes, which may be those of any split, only those that were fitted on one of these teachers count.
    """
    given = _given(teachers)
    found: dict[str, Output] = {}
    for output in given:
        name = output.spec.name
        found[name if name not in found else f"{output.part.part.name}/{name}"] = output
    for probe in sorted(probes, key=_age):
        source = next((output for output in given if _is_input(output, probe)), None)
        if source is None:
            continue
        part = PartReader(objects, probe)
        for encoded in probe.outputs:
            name = encoded.output.name
            if (older := found.get(name)) is not None:
                found[f"{older.part.part.name}/{name}"] = older
            found[name] = Output(encoded.output, part, source.source, source.kept)
    return found


def group_by_teacher(outputs: Mapping[str, Output]) -> dict[str, dict[str, str]]:
    """Teacher, by the name of its oldest part, to {output's own name: its name among these}; a probe's output, and of
    two the newer probe's, goes before what the teacher gave."""
    oldest: dict[str, PartSpec] = {}
    for output in outputs.values():
        part = output.source.part
        standing = oldest.setdefault(part.facts["teacher_id"], part)
        oldest[part.facts["teacher_id"]] = min(standing, part, key=_age)
    found: dict[str, dict[str, str]] = {part.name: {} for part in sorted(oldest.values(), key=_age)}
    for name, output in sorted(outputs.items(), key=lambda item: (item[1].part.part.kind == "probe", _order(item[1]))):
        found[oldest[output.source.part.facts["teacher_id"]].name][output.spec.name] = name
    return found


def _order(output: Output) -> tuple[int, str]:
    return _age(output.part.part)


def _given(teachers: Iterable[PartReader]) -> list[Output]:
    """What teachers gave, the oldest first; parts with the same output of the same teacher in other views are one."""
    groups: list[tuple[EncodedOutput, list[PartReader]]] = []
    for part in sorted(teachers, key=lambda reader: _age(reader.part)):
        for kept in part.part.outputs:
            same = (parts for standing, parts in groups if standing == kept and _goes_on(parts, part))
            if (parts := next(same, None)) is not None:
                parts.append(part)
            else:
                groups.append((kept, [part]))
    joined = [(kept, ViewParts(parts)) for kept, parts in groups]
    return [Output(kept.output, parts.parts[0], parts, kept) for kept, parts in joined]


def _goes_on(parts: Sequence[PartReader], part: PartReader) -> bool:
    """Whether a part holds what these parts hold, in views that none of them has."""
    start, stop = part.part.views or (0, 1)
    ranges = (other.part.views or (0, 1) for other in parts)
    same = parts[0].part.facts["teacher_id"] == part.part.facts["teacher_id"]
    return same and all(stop <= first or last <= start for first, last in ranges)


def _age(part: PartSpec) -> tuple[int, str]:
    return int(part.facts.get("order", 0)), part.name


def open_column(name: str, output: Output, objects: LocalObjects) -> "Column":
    """What reading an output takes. Raises CorruptCacheError if its arrays or its head do not fit it."""
    from featurecache.store.gather import Column

    head = _head(output, objects) if output.part.part.kind == "probe" else None
    return Column(name, output.source, _encoding(output), head)


def _is_input(output: Output, probe: PartSpec) -> bool:
    """Whether a probe was fitted on this output."""
    made_by = output.source.part.facts["teacher_id"], output.kept.output.name
    return made_by == (probe.facts["teacher_id"], probe.facts["input"].rpartition("/")[2])


def _encoding(output: Output) -> Encoding:
    kept, part = output.kept, output.source.part
    try:
        encoding = make_encoding(kept.encoding, kept.output, scale=kept.scale)
    except UsageError as error:
        raise CorruptCacheError(f"{part.prefix} cannot be decoded: {error}") from None
    for other in output.source.parts:
        if not set(encoding.arrays) <= set(other.part.arrays):
            raise CorruptCacheError(f"{other.part.prefix} has not the arrays of {encoding.spec} for its outputs")
    return encoding


def _head(output: Output, objects: LocalObjects) -> "tuple[Tensor, Tensor]":
    """A probe's linear layer, float32: weight (classes, dim) and bias (classes,)."""
    import safetensors.torch

    probe = output.part.part
    try:
        tensors = safetensors.torch.load(read_asset(objects, probe, "head.safetensors"))
        weight, bias = tensors["weight"].float(), tensors["bias"].float()
    except (safetensors.SafetensorError, KeyError) as error:
        raise CorruptCacheError(f"the head of {probe.prefix} cannot be read: {error}") from None
    # of what is kept as some classes alone there is no vector that a head could be applied to
    if (
        is_sparse(output.kept.encoding)
        or weight.shape != (*output.spec.shape, *output.kept.output.shape)
        or bias.shape != output.spec.shape
    ):
        raise CorruptCacheError(f"the head of {probe.prefix} does not fit the {probe.facts['input']} of this split")
    return weight, bias
