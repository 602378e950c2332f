"""The contract of a teacher: a frozen network that is run once over a source, or what one that is elsewhere said."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from featurecache.inputs import ImageInput, Inputs, TextInput
from featurecache.types import Json, OutputSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

__all__ = ["Described", "Layered", "Recorded", "Teacher", "further_outputs"]


@runtime_checkable
class Described(Protocol):
    """What a cache has to know of any teacher: what it takes in, what it gives, and what it is."""

    name: str
    """Short resolved name, such as "vit_base_patch16_224.augreg2_in21k_ft_in1k" or "all-MiniLM-L6-v2"."""
    input: ImageInput | TextInput
    outputs: tuple[OutputSpec, ...]
    """What it always gives, embedding first."""

    def identity(self) -> Json:
        """Library, model, configuration, output selectors and the hash of the weights; never paths, versions, times."""
        ...


@runtime_checkable
class Teacher(Described, Protocol):
    """A frozen network that can be run."""

    def __call__(self, batch: Inputs) -> "Mapping[str, Tensor]":
        """Every output from one forward pass, floating point (batch, *shape), without gradients; one with `longest` is
        (batch, tokens of the batch, *shape), padding included.

        The batch is on the teacher's device; the caller decides about autocast.
        """
        ...

    def to(self, device: "torch.device | str") -> "Teacher":
        """Move the network; returns itself."""
        ...


@runtime_checkable
class Layered(Teacher, Protocol):
    """A teacher whose layers can be looked at: that costs time and memory, so it is done only when asked for."""

    @property
    def further(self) -> tuple[OutputSpec, ...]:
        """What it gives besides when asked: "hidden.L" and "qkv.L", as `featurecache.layers` says what they are.

        It may take a pass to know their shapes.
        """
        ...

    def __call__(self, batch: Inputs, further: Sequence[str] = ()) -> "Mapping[str, Tensor]":
        """The same, and these of what there is further, from one pass."""
        ...


@runtime_checkable
class Recorded(Described, Protocol):
    """A teacher that is not at hand: what it gave for the plain view of samples of one source is known, and no more."""

    def recall(self, samples: "np.ndarray") -> "tuple[np.ndarray, Mapping[str, Tensor]]":
        """Of samples by their index in the source, int64 (samples,): which of these it gave something for, int64
        (known,) positions, and every output of those, floating point (known, *shape) on the CPU."""
        ...


def further_outputs(teacher: Described) -> tuple[OutputSpec, ...]:
    """What a teacher gives besides when asked, of any teacher."""
    return teacher.further if isinstance(teacher, Layered) else ()
