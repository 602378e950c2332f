"""Random numbers made on the device from what they are for, so that no generator's state decides them."""

import torch
from torch import Tensor

from student.objectives.shapes import Labels

__all__ = ["random_bits"]

_MASK = 0xFFFFFFFF


def random_bits(seed: Tensor, step: Tensor, rows: Labels, count: int) -> Tensor:
    """Row numbers (batch,) -> int64 (batch, count), 32 evenly distributed bits each.

    A function of (seed, step, row) and its place in the line alone, the same on every device; seed and step are
    int64 scalars on the device of `rows`, so that nothing waits for it. Equal rows get equal lines.
    """
    line = _mixed(rows ^ _mixed(step ^ _mixed(seed)))
    place = _mixed(torch.arange(count, device=rows.device))
    return _mixed(line[:, None] ^ place)


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the 32-bit integers, in int64, in which each bit of x changes half of the bits.

    Shifts and constants are Wellons's, found by search (github.com/skeeto/hash-prospector, public domain); both
    constants are below 2^31, so no product overflows.
    """
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK
    return x ^ (x >> 15)
