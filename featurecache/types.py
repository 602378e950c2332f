"""The nouns that every part of the project shares: samples, outputs, arrays and sparse logits."""

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = [
    "NO_LABEL",
    "ArraySpec",
    "Decoded",
    "Dtype",
    "Json",
    "Modality",
    "OutputSpec",
    "Reason",
    "Sample",
    "SampledLogits",
    "SparseLogits",
    "TopLogits",
]

Modality = Literal["image", "text"]
Dtype = Literal["float32", "float16", "int8", "uint8", "uint16", "uint64", "int32", "int64"]
Decoded: TypeAlias = "np.ndarray | str"
Json: TypeAlias = Any

NO_LABEL = -1
"""The stored label of a sample that has none."""


class Reason(enum.IntEnum):
    """Why a row is invalid; the numbers are part of format 1 and never change their meaning."""

    VALID = 0
    UNREADABLE = 1
    """The record or file could not be read."""
    CORRUPT_IMAGE = 2
    """The image is truncated, damaged, or of a format that is not accepted."""
    IMAGE_TOO_LARGE = 3
    """More pixels than the decompression-bomb limit."""
    NOT_UTF8 = 4
    """The text is not valid UTF-8."""
    EMPTY_TEXT = 5
    """The text is empty or white space."""
    NOT_FINITE = 6
    """The teacher's output is not finite in its encoding (NaN, or beyond float16)."""
    NO_OUTPUT = 7
    """The sample is good, and the teacher gave nothing for it: of what it said elsewhere, nothing is about it."""

    @property
    def text(self) -> str:
        """The reason in words."""
        return self.name.lower().replace("_", " ").replace("utf8", "UTF-8")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as its source holds it: not yet decoded, so that reading never fails on bad content."""

    key: str
    """Unique in its source and stable between runs and machines."""
    encoded: bytes
    """The file's bytes (JPEG, PNG, ...) for an image; the UTF-8 bytes for a text."""
    label: int | None = None
    """Class index, or None where the source has no label for it."""
    problem: Reason = Reason.VALID
    """Set by a source that could not read the sample at all."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One thing a teacher gives for each sample."""

    name: str
    """"embedding", "logits", or of a layer and for each token "hidden.6" or "qkv.6"."""
    shape: tuple[int, ...]
    """Without view and sample axes: (768,) for an embedding, (classes,) for logits, (tokens, 768) for hidden states of
    images; (768,), which is that of one token, where `longest` is above 0."""
    classes: tuple[str, ...] = ()
    """Class names of logits in order, where they are known."""
    longest: int = 0
    """Above 0 each sample has as many rows of this shape as it has tokens, so many at most: hidden states of texts."""
    heads: int = 0
    """Attention heads that the queries, keys and values of "qkv.6" are cut into; 0 for other outputs."""

    @property
    def tokens(self) -> int:
        """How many tokens every sample has; 0 where that differs, or there is one vector for a sample."""
        return self.shape[0] if len(self.shape) == 2 and not self.longest else 0

    @property
    def is_per_token(self) -> bool:
        """Whether it has a vector for each token rather than one for the sample."""
        return bool(self.longest or self.tokens)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One plain Zarr array of a part: [view, sample, *shape], or [sample, *shape] in a part without views."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...] = ()
    """Trailing axes, without view and sample."""
    dimensions: tuple[str, ...] = ()
    """Names of the trailing axes, for Zarr's dimension_names."""
    longest: int = 0
    """Above 0 the array is ragged: rows of at most this many elements of `shape`, end to end within each shard."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of the longest possible one in a ragged array."""
        return math.prod(self.shape) * max(self.longest, 1) * np.dtype(self.dtype).itemsize

    @property
    def fill(self) -> int | float:
        """What stands where there is no value: NaN for floats, -128 for int8, 0 for others."""
        if np.dtype(self.dtype).kind == "f":
            return math.nan
        return -128 if self.dtype == "int8" else 0


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The k largest of `size` logits for each row, with the logsumexp of the whole row at some temperatures."""

    values: "Tensor"
    """float (batch, k), largest first."""
    indices: "Tensor"
    """int64 (batch, k)."""
    logsumexp: "Tensor"
    """float32 (batch, temperatures): logsumexp(logits / T) over all classes."""
    temperatures: tuple[float, ...]
    size: int
    """Number of classes."""

    def map(self, change: "Callable[[Tensor], Tensor]") -> "TopLogits":
        """The same with each tensor changed: other rows of it, or in other memory."""
        values, indices, sums = (change(item) for item in (self.values, self.indices, self.logsumexp))
        return TopLogits(values, indices, sums, self.temperatures, self.size)

    def to(self, *args: Any, **kwargs: Any) -> "TopLogits":
        """The same on another device (arguments as of `Tensor.to`; dtypes are kept)."""
        return self.map(lambda item: item.to(*args, **kwargs))


@dataclass(frozen=True, slots=True)
class SampledLogits:
    """Estimates of the class probabilities softmax(logits / temperature) of each row; their expectation is exact."""

    indices: "Tensor"
    """int64 (batch, places): classes, those that are known exactly first, then the most frequently drawn."""
    weights: "Tensor"
    """float32 (batch, places): the estimates, which add up to 1; 0 in places that are not used, where the index is
    some class again."""
    entropy: "Tensor"
    """float32 (batch,): of the exact probabilities, in nats."""
    temperature: float
    size: int
    """Number of classes."""

    def map(self, change: "Callable[[Tensor], Tensor]") -> "SampledLogits":
        """The same with each tensor changed: other rows of it, or in other memory."""
        indices, weights, entropy = (change(item) for item in (self.indices, self.weights, self.entropy))
        return SampledLogits(indices, weights, entropy, self.temperature, self.size)

    def to(self, *args: Any, **kwargs: Any) -> "SampledLogits":
        """The same on another device (arguments as of `Tensor.to`; dtypes are kept)."""
        return self.map(lambda item: item.to(*args, **kwargs))


SparseLogits: TypeAlias = TopLogits | SampledLogits
"""What is known of logits that were not kept whole."""
