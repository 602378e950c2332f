"""The contract of a teacher: a frozen network that is run once over a source."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from featurecache.inputs import ImageInput, Inputs, TextInput
from featurecache.types import Json, OutputSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Teacher"]


@runtime_checkable
class Teacher(Protocol):
    """A frozen network: what it takes in, what it gives, and what it is."""

    name: str
    """Short resolved name, such as "vit_base_patch16_224.augreg2_in21k_ft_in1k" or "all-MiniLM-L6-v2"."""
    input: ImageInput | TextInput
    outputs: tuple[OutputSpec, ...]
    """All that it can give, embedding first."""

    def __call__(self, batch: Inputs) -> "Mapping[str, Tensor]":
        """Every output from one forward pass, floating point (batch, *shape), without gradients.

        The batch is on the teacher's device; the caller decides about autocast.
        """
        ...

    def to(self, device: "torch.device | str") -> "Teacher":
        """Move the network; returns itself."""
        ...

    def identity(self) -> Json:
        """Library, model, configuration, output selectors and the hash of the weights; never paths, versions, times."""
        ...
