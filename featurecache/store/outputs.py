"""The outputs of one split by name, and how each is read: what a teacher gave, and what probes make of it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurecache.encodings import Encoding, make_encoding
from featurecache.errors import CorruptCacheError, UsageError
from featurecache.store.layout import EncodedOutput, PartSpec
from featurecache.store.objects import LocalObjects
from featurecache.store.part_reader import PartReader
from featurecache.store.parts import read_asset
from featurecache.types import OutputSpec

if TYPE_CHECKING:
    from torch import Tensor

    from featurecache.store.gather import Column

__all__ = ["Output", "find_outputs", "open_column"]


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a split."""

    spec: OutputSpec
    part: PartReader
    """The part that gives it: a teacher's, or a probe."""
    source: PartReader
    """The teacher's part whose arrays it is read from: its own, or the one behind the probe."""
    kept: EncodedOutput
    """What those arrays hold: the output itself, or the embedding that the probe's head is applied to."""


def find_outputs(
    objects: LocalObjects, teachers: Collection[PartReader], probes: Iterable[PartSpec]
) -> dict[str, Output]:
    """Teachers first, probes after: a probe's logits take the plain name, the teacher's stay "part/logits".

    Of the probes, which may be those of any split, only those that were fitted on one of these teachers count.
    """
    given = [Output(kept.output, part, part, kept) for part in teachers for kept in part.part.outputs]
    for probe in sorted(probes, key=lambda part: (part.facts["order"], part.name)):
        source = _input_of(probe, teachers)
        if source is not None:
            part = PartReader(objects, probe)
            given += [Output(encoded.output, part, *source) for encoded in probe.outputs]
    found: dict[str, Output] = {}
    for output in given:
        name = output.spec.name
        if name in found:
            older = found[name]
            found[f"{older.part.part.name}/{name}"] = older
        found[name] = output
    return found


def open_column(name: str, output: Output, objects: LocalObjects) -> "Column":
    """What reading an output takes. Raises CorruptCacheError if its arrays or its head do not fit it."""
    from featurecache.store.gather import Column

    head = None if output.part is output.source else _head(output, objects)
    return Column(name, output.source, _encoding(output), head)


def _input_of(probe: PartSpec, teachers: Iterable[PartReader]) -> tuple[PartReader, EncodedOutput] | None:
    """The embedding that a probe was fitted on, or None if no teacher here gave it."""
    fitted_on = probe.facts["teacher_id"], probe.facts["input"]
    for part in teachers:
        for encoded in part.part.outputs:
            if (part.part.facts["teacher_id"], encoded.output.name) == fitted_on:
                return part, encoded
    return None


def _encoding(output: Output) -> Encoding:
    kept, part = output.kept, output.source.part
    try:
        encoding = make_encoding(kept.encoding, kept.output, scale=kept.scale)
    except UsageError as error:
        raise CorruptCacheError(f"{part.prefix} cannot be decoded: {error}") from None
    if not set(encoding.arrays) <= set(part.arrays):
        raise CorruptCacheError(f"{part.prefix} has not the arrays of {encoding.spec} for its outputs")
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
    # what is kept as its largest values alone has no width that a head could be applied to
    is_dense = not output.kept.encoding.startswith("topk")
    if (
        not is_dense
        or weight.shape != (*output.spec.shape, *output.kept.output.shape)
        or bias.shape != output.spec.shape
    ):
        raise CorruptCacheError(f"the head of {probe.prefix} does not fit the {probe.facts['input']} of this split")
    return weight, bias
