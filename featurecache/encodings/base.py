"""The contract of an encoding: one output of a teacher to plain Zarr arrays and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from featurecache.types import ArraySpec, SparseLogits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Encoding"]


@runtime_checkable
class Encoding(Protocol):
    """How one output is kept. `spec` is its text form ("float16", "topk:64"), part of a cache's identity."""

    spec: str
    arrays: tuple[ArraySpec, ...]
    """The arrays it needs, named after the output: "embedding", or "logits.values", "logits.indices", ..."""

    def encode(self, values: "Tensor") -> "dict[str, Tensor]":
        """Floating point (batch, *shape) on any device -> one tensor for each array, on the same device."""
        ...

    def decode(self, arrays: "Mapping[str, Tensor]") -> "Tensor | SparseLogits":
        """Rows of the arrays -> float32 (batch, *shape), or sparse logits."""
        ...
