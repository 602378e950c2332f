"""The k largest logits of each row, and the logsumexp of the whole row at the temperatures that will be used."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from featurecache.errors import CorruptCacheError, UsageError
from featurecache.types import ArraySpec, Dtype, OutputSpec, TopLogits

__all__ = ["TopK", "check_indices", "check_temperatures", "index_dtype", "shortest"]


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
        check_temperatures(temperatures)
        self.temperatures = tuple(sorted(set(map(float, temperatures))))
        self.spec = f"topk:{k}@{','.join(map(shortest, self.temperatures))}"
        self._name, self._k, self._size = output.name, k, size
        self.arrays = (
            ArraySpec(f"{output.name}.values", "float16", (k,), ("rank",)),
            ArraySpec(f"{output.name}.indices", index_dtype(size), (k,), ("rank",)),
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
        name = f"{self._name}.indices"
        check_indices(name, arrays[name], self._size)

    def decode(self, arrays: Mapping[str, Tensor]) -> TopLogits:
        """Top logits over all classes, values in float32."""
        return TopLogits(
            values=arrays[f"{self._name}.values"].float(),
            indices=arrays[f"{self._name}.indices"].long(),
            logsumexp=arrays[f"{self._name}.logsumexp"],
            temperatures=self.temperatures,
            size=self._size,
        )


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Raises UsageError unless there are some, and all of them are positive numbers."""
    if not temperatures or not all(0 < t < math.inf for t in temperatures):
        raise UsageError("temperatures must be positive numbers", hint="for example --temperatures 1,2,4")


def index_dtype(classes: int) -> Dtype:
    """The smallest type of index that reaches them all."""
    return "uint16" if classes <= 2**16 else "int32"


def check_indices(name: str, indices: np.ndarray, classes: int) -> None:
    """Raises CorruptCacheError unless all are numbers of classes."""
    # as unsigned numbers negative ones are the largest, so one pass checks both ends
    if indices.size and int(indices.view(f"u{indices.itemsize}").max()) >= classes:
        raise CorruptCacheError(f"{name} has numbers beyond its {classes:,} classes")


def shortest(number: float) -> str:
    """The shortest text that reads back as the same number: "2", "0.5"."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
