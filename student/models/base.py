"""The contract of a backbone: a network without a head, from a batch of inputs to one vector for each sample."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from featurecache.inputs import ImageInput, TextInput
from featurecache.types import Json, OutputSpec

__all__ = ["Backbone", "Layered"]


@runtime_checkable
class Backbone(Protocol):
    """An `nn.Module` that gives pooled features; made as `Class(what it is, input)` with random weights."""

    name: str
    """The name that builds it again: "mobilenetv3_small_100", "bert:4x256"."""
    features: int
    """Width of its output."""

    @property
    def input(self) -> ImageInput | TextInput:
        """What it takes in."""
        ...

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One collated batch of its input -> floating point (batch, features)."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As any `nn.Module` has it."""
        ...

    def load_pretrained(self, source: str) -> None:
        """Start from the weights of a trained model of the same shape, in its library's own form. Raises UsageError."""
        ...

    def depths(self) -> Mapping[str, int]:
        """How deep each parameter lies, by its name: 0 for what sees the input first, then layer by layer."""
        ...

    def to_json(self) -> Json:
        """All that `backbone_from_json` needs beside the input to build it again, weights excepted."""
        ...


@runtime_checkable
class Layered(Backbone, Protocol):
    """A backbone whose layers can be looked at. What is not asked for is not kept, and costs nothing."""

    def layers(self) -> Mapping[str, OutputSpec]:
        """What there is for each token, "hidden.L" and "qkv.L", by name: see `featurecache.layers`."""
        ...

    def keep(self, names: Sequence[str]) -> None:
        """From now on keep these of every call, and no others, until they are taken."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """Floating point (batch, tokens, width) of the last call, by name, once."""
        ...
