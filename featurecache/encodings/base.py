"""The contract of an encoding: one output of a teacher to plain Zarr arrays and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from featurecache.types import ArraySpec, SparseLogits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Encoding", "holds_values"]


@runtime_checkable
class Encoding(Protocol):
    """How one output is kept. `spec` is its text form ("float16", "topk:64"), part of a cache's identity."""

    spec: str
    arrays: tuple[ArraySpec, ...]
    """The arrays it needs, named after the output: "embedding", or "logits.values", "logits.indices", ..."""

    def encode(self, values: "Tensor") -> "dict[str, Tensor]":
        """Floating point (batch, *shape) on any device -> one tensor for each array, on the same device.

        `holds_values` must be false for a row that cannot be kept, such as one that is not finite.
        """
        ...

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises CorruptCacheError for rows of the arrays that no teacher's output is kept as and that would lead
        `decode`, or who uses what it gives, beyond an array: numbers of classes. Other values are just values."""
        ...

    def decode(self, arrays: "Mapping[str, Tensor]") -> "Tensor | SparseLogits":
        """Rows of the arrays -> float32 (batch, *shape), or sparse logits; NaN in rows that hold no values."""
        ...


def holds_values(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool (batch,): rows of encoded arrays, at least one array, that are finite and have no int8 -128."""
    held = []
    for values in arrays.values():
        trailing = tuple(range(1, values.ndim))
        if values.dtype.kind == "f":
            held.append(np.isfinite(values).all(axis=trailing))
        elif values.dtype == np.int8:
            held.append((values != ArraySpec("", "int8").fill).all(axis=trailing))
    return np.logical_and.reduce(held)
