"""Every value as it is, in float32 or float16."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from featurecache.types import ArraySpec, Dtype, OutputSpec

__all__ = ["Dense", "value_array"]


class Dense:
    """One array with the output's own name and shape; float16 has a relative error of about 5e-4 and ends at 65,504.

    That of an output for each token of texts is ragged: the writer leaves the padding out, the reader puts zeros there.
    """

    def __init__(self, output: OutputSpec, dtype: Dtype = "float16") -> None:
        self.spec: str = dtype
        self._name = output.name
        self._dtype = getattr(torch, dtype)
        self.arrays = (value_array(output, dtype),)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(batch, *shape) floating point -> the same in this dtype; what overflows becomes infinite."""
        return {self._name: values.to(self._dtype)}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Every value can be decoded."""

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """(batch, *shape) float32."""
        return arrays[self._name].float()


def value_array(output: OutputSpec, dtype: Dtype) -> ArraySpec:
    """The array that has the output's own name and shape."""
    axis = "class" if output.name == "logits" else "feature"
    numbered = tuple(f"axis{number}" for number in range(len(output.shape)))
    names = (axis,) if len(output.shape) == 1 else numbered
    return ArraySpec(output.name, dtype, output.shape, names, output.longest)
