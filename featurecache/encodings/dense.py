"""Every value as it is, in float32 or float16."""

from collections.abc import Mapping

import torch
from torch import Tensor

from featurecache.types import ArraySpec, Dtype, OutputSpec

__all__ = ["Dense"]


class Dense:
    """One array with the output's own name and shape; float16 has a relative error of about 5e-4 and ends at 65,504."""

    def __init__(self, output: OutputSpec, dtype: Dtype = "float16") -> None:
        self.spec: str = dtype
        self._name = output.name
        self._dtype = getattr(torch, dtype)
        axis = "class" if output.name == "logits" else "feature"
        dimensions = (
            (axis,) if len(output.shape) == 1 else tuple(f"axis{number}" for number in range(len(output.shape)))
        )
        self.arrays = (ArraySpec(output.name, dtype, output.shape, dimensions),)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(batch, *shape) floating point -> the same in this dtype; what overflows becomes infinite."""
        return {self._name: values.to(self._dtype)}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """(batch, *shape) float32."""
        return arrays[self._name].float()
