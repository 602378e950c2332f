"""Lengths and directions of vectors whose gradients stay finite where vectors vanish or coincide."""

import torch
from torch import Tensor

from student.objectives.shapes import Vectors

__all__ = ["directions", "distances"]

_SHORTEST = 1e-12


def directions(x: Tensor) -> Tensor:
    """Unit vectors along the last axis; zero, with a gradient of zero, where a vector is shorter than 1e-12.

    `F.normalize` has the same values and a gradient of 1e12 there, enough to undo a training run.
    """
    square = x.square().sum(dim=-1, keepdim=True)
    is_long = square > _SHORTEST**2
    return x * torch.where(is_long, square, 1.0).rsqrt() * is_long


def distances(x: Vectors) -> Tensor:
    """(batch, dim) -> ||x_i - x_j||, (batch, batch); exactly 0, with a gradient of zero, where two are equal.

    From the differences themselves: by way of products, close neighbours would lose all their digits in float32.
    """
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
