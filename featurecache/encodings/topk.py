"""The k largest logits of each row, and the logsumexp of the whole row at the temperatures that will be used."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.types import ArraySpec, Dtype, OutputSpec, SparseLogits

__all__ = ["TopK"]


class TopK:
    """Three arrays: `.values` (float16, largest first), `.indices`, `.logsumexp` (float32, one for each temperature).

    The logsumexp makes the stored classes' probabilities exact at each of those temperatures, and what they leave to 1
    is the mass of all other classes together. It is taken over the row as it is stored, with the k values already
    rounded to float16, so that the stored probabilities never add up to more than 1.
    """

    def __init__(self, output: OutputSpec, k: int, temperatures: Sequence[float] = (1.0, 2.0, 4.0)) -> None:
        """Raises UsageError for a k or temperatures that this output cannot have."""
        (size,) = output.shape if len(output.shape) == 1 else (0,)
        if not 1 <= k <= size:
            raise UsageError(f"topk:{k} needs an output with at least {k} classes; {output.name} has {size}")
        if not temperatures or not all(0 < t < math.inf for t in temperatures):
            raise UsageError("temperatures must be positive numbers", hint="for example --temperatures 1,2,4")
        self.temperatures = tuple(sorted(set(map(float, temperatures))))
        self.spec = f"topk:{k}@{','.join(map(_shortest, self.temperatures))}"
        self._name, self._k, self._size = output.name, k, size
        index: Dtype = "uint16" if size <= 2**16 else "int32"
        self.arrays = (
            ArraySpec(f"{output.name}.values", "float16", (k,), ("rank",)),
            ArraySpec(f"{output.name}.indices", index, (k,), ("rank",)),
            ArraySpec(f"{output.name}.logsumexp", "float32", (len(self.temperatures),), ("temperature",)),
        )

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(batch, classes) floating point -> values float16, indices int32, logsumexp float32."""
        logits = values.float()
        top, indices = logits.topk(self._k, dim=-1)
        top = top.half()
        stored = logits.scatter(-1, indices, top.float())
        sums = torch.stack([torch.logsumexp(stored / t, dim=-1) for t in self.temperatures], dim=-1)
        return {
            f"{self._name}.values": top,
            f"{self._name}.indices": indices.int(),
            f"{self._name}.logsumexp": sums,
        }

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises CorruptCacheError unless all indices are numbers of classes."""
        indices = arrays[f"{self._name}.indices"]
        # as unsigned numbers negative ones are the largest, so one pass checks both ends
        if indices.size and int(indices.view(f"u{indices.itemsize}").max()) >= self._size:
            raise CorruptCacheError(f"{self._name}.indices has numbers beyond its {self._size:,} classes")

    def decode(self, arrays: Mapping[str, Tensor]) -> SparseLogits:
        """Sparse logits over all classes, values in float32."""
        return SparseLogits(
            values=arrays[f"{self._name}.values"].float(),
            indices=arrays[f"{self._name}.indices"].long(),
            logsumexp=arrays[f"{self._name}.logsumexp"],
            temperatures=self.temperatures,
            size=self._size,
        )


def _shortest(number: float) -> str:
    """The shortest text that reads back as the same number: "2", "0.5"."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
