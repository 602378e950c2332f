"""Every value in eight bits: a multiple of a scale, one for each row or one for each column."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from featurecache.encodings.dense import value_array
from featurecache.errors import UsageError
from featurecache.types import ArraySpec, OutputSpec

__all__ = ["Int8", "column_scales"]

_STEPS = 127
_NO_VALUE = -128
_MARGIN = 1.5
"""How far beyond the largest value of the sample a column reaches; what lies further out is clipped, and a few clipped
values cost more than the finer steps of a smaller margin gain (docs/decisions/0005)."""
_MOST_COLUMNS = 2**16
"""Scales stand in part.json: about ten bytes for each."""


class Int8:
    """value = q * scale with q from -127 to 127, and -128 for no value; a scale for each row, or one for each column.

    Rows carry their scale in an array of their own. Columns have theirs from the beginning, so what is beyond them is
    clipped. "int8" alone is "int8:row" until it has been measured which of the two is closer.
    """

    def __init__(self, output: OutputSpec, axis: str = "", scale: Sequence[float] = ()) -> None:
        """`scale` has one number for each column, in C order; without it columns can be planned but not encoded.

        Raises UsageError for an axis that is none, and for more columns than part.json has room for.
        """
        if axis not in ("", "row", "column"):
            raise UsageError(
                f"int8 has a scale for each row or column, not {axis!r}",
                hint="write int8:row or int8:column, or int8 for the closer one",
            )
        self.spec = f"int8:{axis}" if axis else "int8"
        values = value_array(output, "int8")
        self._name, self._by_column = output.name, axis == "column"
        self._scale = torch.tensor(list(scale), dtype=torch.float32)
        if self._by_column:
            columns = values.row_bytes
            if columns > _MOST_COLUMNS:
                hint = f"write --encode {output.name}=int8:row"
                raise UsageError(f"int8:column can have {_MOST_COLUMNS:,} columns, not {columns:,}", hint=hint)
            if len(scale) not in (0, columns):
                raise UsageError(f"{output.name} has {columns:,} columns and {len(scale):,} scales")
            self._scale = self._scale.reshape(output.shape) if len(scale) else self._scale
        rows = () if self._by_column else (ArraySpec(f"{output.name}.scale", "float32"),)
        self.arrays = (values, *rows)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(batch, *shape) floating point -> int8 of the same shape, and by row a float32 scale (batch,).

        A row that is not finite has no value anywhere, and no finite scale.
        """
        exact = values.float()
        finite = _each_row(exact.isfinite().flatten(1).all(1), exact)
        if self._by_column:
            return {self._name: _quantised(exact, self._columns(exact), finite)}
        scale = exact.abs().flatten(1).amax(1) / _STEPS
        return {self._name: _quantised(exact, _each_row(scale, exact), finite), f"{self._name}.scale": scale}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Every value can be decoded."""

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """(batch, *shape) float32; NaN where there is no value."""
        stored = arrays[self._name]
        scale = self._columns(stored) if self._by_column else _each_row(arrays[f"{self._name}.scale"], stored)
        return torch.where(stored == _NO_VALUE, torch.nan, stored.float() * scale)

    def _columns(self, like: Tensor) -> Tensor:
        """The scales on the device of the values. Raises UsageError if there are none."""
        if not len(self._scale):
            hint = "measured_part takes them from a sample of rows"
            raise UsageError(f"int8:column of {self._name} has no scales yet", hint=hint)
        self._scale = self._scale.to(like.device)
        return self._scale


def column_scales(values: Tensor) -> tuple[float, ...]:
    """A scale for each column of a sample, float32 (rows, *shape) with at least one row; short decimal numbers.

    A column that is zero in the whole sample gets the mean scale of all: any scale keeps its zeros, and this one also
    keeps what other rows may have there.
    """
    scale = values.abs().flatten(1).amax(0).double() * (_MARGIN / _STEPS)
    scale = torch.where(scale > 0, scale, scale.mean())
    return tuple(float(f"{number:.6g}") for number in scale.tolist())


def _quantised(exact: Tensor, scale: Tensor, finite: Tensor) -> Tensor:
    """int8: the nearest multiples, 0 where the scale is 0."""
    steps = torch.where(scale > 0, exact / scale, 0.0).round().clamp(-_STEPS, _STEPS)
    return torch.where(finite, steps, float(_NO_VALUE)).to(torch.int8)


def _each_row(numbers: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ...), to go with (batch, *shape)."""
    return numbers.reshape(-1, *[1] * (like.dim() - 1))
