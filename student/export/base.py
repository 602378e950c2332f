"""The contract of an export, and how what another library makes of it is compared with the student itself."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor

from featurecache.errors import FeatureCacheError
from featurecache.inputs import ImageInput, TextInput
from featurecache.types import Json
from student.models.student import Student

__all__ = [
    "HEADS_FILE",
    "USAGE_HEADS",
    "Exported",
    "Exporter",
    "check_agreement",
    "head_weights",
    "largest_difference",
    "outputs_of",
    "trial_batch",
    "write_weights",
]

HEADS_FILE = "heads.safetensors"
USAGE_HEADS = """
from safetensors.torch import load_file

heads = load_file("heads.safetensors")
names = sorted({key.rpartition(".")[0] for key in heads})
linear = torch.nn.functional.linear
outputs = {name: linear(features, heads[f"{name}.weight"], heads[f"{name}.bias"]) for name in names}
"""
"""For an `Exported.usage` that has `features`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and how near it comes."""

    usage: str
    """Python that loads and runs it where its folder is the working directory; it has no text of the cache in it."""
    largest_difference: float
    """Between an output that the files give, loaded as anybody loads them, and the student's own."""
    classifier: str | None = None
    """The head that became the library's own classifier."""
    heads: tuple[str, ...] = ()
    """Those in `heads.safetensors`: NAME.weight (width, features) and NAME.bias (width,), upon the pooled features."""
    notes: tuple[str, ...] = ()
    """What a user of it has to know besides: Markdown, without text of the cache either."""


class Exporter(Protocol):
    """Writes a student into an empty folder and tries what it wrote."""

    def __call__(
        self, student: Student, folder: Path, *, facts: Json, class_names: Mapping[str, Sequence[str]]
    ) -> Exported:
        """`student` is in eval mode on the CPU, `facts` as `load_student` gives them; `class_names` of heads, in order.

        Raises UsageError for a student that the library does not have, FeatureCacheError if it gives something else.
        """
        ...


def trial_batch(network_input: ImageInput | TextInput, samples: int, *, tokens: int = 8) -> dict[str, Tensor]:
    """Random uint8 images, or random ids of which each sample has one less than the one before it."""
    generator = torch.Generator().manual_seed(samples)
    if isinstance(network_input, ImageInput):
        shape = (samples, 3, network_input.size, network_input.size)
        return {"images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}
    tokens = min(tokens, network_input.max_length)
    ids = torch.randint(0, network_input.vocabulary_size, (samples, tokens), generator=generator)
    lengths = (tokens - torch.arange(samples)).clamp(min=1)
    return {"ids": ids, "mask": torch.arange(tokens) < lengths[:, None]}


def outputs_of(student: Student, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features and what each head makes of them, without second names."""
    with torch.inference_mode():
        outputs = student(batch)
    return {name: outputs[name] for name in ("features", *student.widths)}


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute one; infinite where the shapes differ or something is no number."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found - expected).abs().max().item()
    return float("inf") if math.isnan(difference) else difference


def check_agreement(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, tolerance: float) -> float:
    """The largest difference. Raises FeatureCacheError if it is more than `tolerance` times the largest number."""
    differences = {name: largest_difference(found[name], value) for name, value in expected.items()}
    for name, difference in differences.items():
        if difference > tolerance * max(1.0, expected[name].abs().max().item()):
            message = f"the exported student gives another {name!r} than the trained one: it is {difference:.2g} off"
            raise FeatureCacheError(message, hint="nothing was written; --to safetensors keeps the student as it is")
    return max(differences.values())


def head_weights(student: Student, names: Iterable[str]) -> dict[str, Tensor]:
    """{NAME.weight: (width, features), NAME.bias: (width,)} of some heads."""
    return {f"{name}.{key}": value for name in names for key, value in student.heads[name].state_dict().items()}


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file as timm and transformers expect it; nothing where there are no tensors."""
    if tensors:
        own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(own, path, metadata={"format": "pt"})
