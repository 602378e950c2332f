"""Classes drawn at random from each row's own probabilities, and how often: an unbiased picture of all of them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from featurecache.encodings.topk import check_indices, check_temperatures, index_dtype, shortest
from featurecache.errors import UsageError
from featurecache.types import ArraySpec, Dtype, OutputSpec, SampledLogits

__all__ = ["Sampled"]

_MOST_DRAWS = 2**16 - 1
_ELEMENTS_AT_ONCE = 2**23
"""Logits that are worked on together: several copies of them in 64 bits are needed."""
_GOLDEN = 0x9E3779B97F4A7C15


class Sampled:
    """N draws with replacement from softmax(logits / T), as distinct classes and counts (arXiv 2503.16870, ACL 2025).

    count / N is the estimate of a class's probability. With k above 0 the k largest logits are kept exactly, as top-k
    keeps them, and the draws are among the others: what the exact ones leave to 1, times count / N, is the estimate,
    with the same expectation and a lower variance.

    The draws of a row are a function of its float32 logits alone: a hash of them is the seed of a counter-based
    generator. So neither batches nor restarts nor the number of processes change them, every view has draws of its
    own, and equal rows have equal ones. All of it is computed where the logits are, but for devices without 64-bit
    numbers (mps), whose logits go to the CPU.
    """

    def __init__(self, output: OutputSpec, draws: int, temperature: float = 1.0, k: int = 0) -> None:
        """Raises UsageError for numbers that this output cannot have."""
        (size,) = output.shape if len(output.shape) == 1 else (0,)
        exact = f"topk:{k}+" if k else ""
        if not 0 <= k < size:
            message = f"{exact}sampled:{draws} needs an output with more than {k} classes; {output.name} has {size}"
            raise UsageError(message)
        if not 1 <= draws <= _MOST_DRAWS:
            raise UsageError(f"{exact}sampled:{draws} draws {draws:,} times", hint=f"1 to {_MOST_DRAWS:,} are possible")
        check_temperatures([temperature])
        self.temperature = float(temperature)
        self.temperatures = (self.temperature,)
        self.spec = f"{exact}sampled:{draws}@{shortest(self.temperature)}"
        self._name, self._draws, self._k, self._size = output.name, draws, k, size
        self._places = min(draws, size - k)
        count: Dtype = "uint8" if draws < 2**8 else "uint16"
        top = (
            ArraySpec(f"{output.name}.values", "float16", (k,), ("rank",)),
            ArraySpec(f"{output.name}.logsumexp", "float32", (1,), ("temperature",)),
        )
        self.arrays = (
            *(top if k else ()),
            ArraySpec(f"{output.name}.indices", index_dtype(size), (k + self._places,), ("rank",)),
            ArraySpec(f"{output.name}.counts", count, (self._places,), ("rank",)),
            ArraySpec(f"{output.name}.entropy", "float32"),
        )

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(batch, classes) floating point -> indices and counts int32, entropy float32, and with k values float16 and
        logsumexp float32. A row that is not finite has no entropy."""
        exact = values.float()
        exact = exact.cpu() if exact.device.type == "mps" else exact
        parts = [self._encode(rows) for rows in exact.split(max(_ELEMENTS_AT_ONCE // self._size, 1))]
        return {array.name: torch.cat([part[array.name] for part in parts]).to(values.device) for array in self.arrays}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises CorruptCacheError unless all indices are numbers of classes."""
        name = f"{self._name}.indices"
        check_indices(name, arrays[name], self._size)

    def decode(self, arrays: Mapping[str, Tensor]) -> SampledLogits:
        """Estimated probabilities over all classes; NaN in rows that hold no values."""
        entropy = arrays[f"{self._name}.entropy"]
        weights = arrays[f"{self._name}.counts"].float() / self._draws
        if self._k:
            log_exact = arrays[f"{self._name}.values"].float() / self.temperature
            log_exact = log_exact - arrays[f"{self._name}.logsumexp"]
            log_mass = log_exact.logsumexp(dim=1, keepdim=True)
            rest = -torch.expm1(log_mass.clamp(max=0))
            # rounded values may add up to a little more than 1
            weights = torch.cat([(log_exact - log_mass.clamp(min=0)).exp(), rest * weights], dim=1)
        return SampledLogits(
            indices=arrays[f"{self._name}.indices"].long(),
            weights=torch.where(entropy.isnan()[:, None], torch.nan, weights),
            entropy=entropy,
            temperature=self.temperature,
            size=self._size,
        )

    def _encode(self, logits: Tensor) -> dict[str, Tensor]:
        top, first = logits.topk(self._k, dim=1)
        top = top.half()
        stored = logits.scatter(1, first, top.float()).double() / self.temperature
        probabilities = stored.softmax(dim=1)
        entropy = torch.special.entr(probabilities).sum(dim=1)
        among = probabilities.nan_to_num(0.0).scatter(1, first, 0.0)
        classes, counts = _distinct(_drawn(among, _uniforms(_seeds(logits), self._draws)))
        classes, counts = classes[:, : self._places], counts[:, : self._places]
        indices = torch.cat([first, classes], dim=1)
        used = torch.cat([torch.ones_like(first), counts], dim=1) > 0
        return {
            f"{self._name}.values": top,
            f"{self._name}.logsumexp": stored.logsumexp(dim=1, keepdim=True).float(),
            f"{self._name}.indices": torch.where(used, indices, indices[:, :1]).int(),
            f"{self._name}.counts": counts.int(),
            f"{self._name}.entropy": entropy.float(),
        }


def _drawn(weights: Tensor, uniforms: Tensor) -> Tensor:
    """float64 weights (batch, classes) and uniforms (batch, draws) from 0 to below 1 -> int64 (batch, draws).

    Class i is drawn where sum(weights[:i]) <= u * sum(weights) < sum(weights[:i + 1]): never one of no weight, whatever
    the sum was rounded to. Where all weights are 0 it is class 0.
    """
    ends = weights.cumsum(dim=1)
    total = ends[:, -1:].contiguous()
    last = torch.searchsorted(ends, total)  # the last class that has a weight
    return torch.minimum(torch.searchsorted(ends, uniforms * total, right=True), last)


def _distinct(draws: Tensor) -> tuple[Tensor, Tensor]:
    """int64 (batch, draws) -> the distinct classes of each row, the most frequent first (of equal ones the lower), and
    their counts, both int64 (batch, draws); the count is 0 in places that are left over."""
    ordered = draws.sort(dim=1).values
    is_new = torch.ones_like(ordered)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = is_new.cumsum(dim=1) - 1
    counts = torch.zeros_like(ordered).scatter_add_(1, place, torch.ones_like(ordered))
    classes = torch.zeros_like(ordered).scatter_(1, place, ordered)
    counts, order = counts.sort(dim=1, descending=True, stable=True)
    return classes.gather(1, order), counts


def _seeds(logits: Tensor) -> Tensor:
    """int64 (batch,): a hash of the bits of each float32 row, the same on every device and in every order of adding."""
    bits = logits.contiguous().view(torch.int32).long()
    column = torch.arange(1, bits.shape[1] + 1, device=bits.device) * _signed(_GOLDEN)
    return _mixed(_mixed(bits + column).sum(dim=1))


def _uniforms(seeds: Tensor, count: int) -> Tensor:
    """float64 (batch, count) from 0 to below 1: the first numbers of the generator SplitMix64 with each seed."""
    counter = torch.arange(1, count + 1, device=seeds.device) * _signed(_GOLDEN)
    return _shifted(_mixed(seeds[:, None] + counter), 11).double() * 2.0**-53


def _mixed(numbers: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on int64, which wrap as uint64 do."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _signed(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ _shifted(numbers, 27)) * _signed(0x94D049BB133111EB)
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Shifted to the right as unsigned numbers."""
    return (numbers >> by) & (2 ** (64 - by) - 1)


def _signed(number: int) -> int:
    """The int64 with the bits of a uint64."""
    return number - 2**64 if number >= 2**63 else number
