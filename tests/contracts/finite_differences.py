"""Gradients of plain functions of numbers, for comparison with those of autograd."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def numeric_gradient(function: Callable[[np.ndarray], float], x: Tensor, *, step: float = 1e-5) -> Tensor:
    """float64 (rows, dim) -> the central differences of function(x), of the same shape; exact to about 1e-8."""
    at = x.detach().numpy().copy()
    gradient = np.empty_like(at)
    for index in np.ndindex(*at.shape):
        values = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            values.append(function(moved))
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return torch.from_numpy(gradient)


def assert_same_loss_and_gradient(loss: Tensor, function: Callable[[np.ndarray], float], x: Tensor) -> None:
    """`loss` was computed from the leaf x; `function` computes it another way."""
    (gradient,) = torch.autograd.grad(loss, x)
    assert abs(loss.item() - function(x.detach().numpy())) <= 1e-11 * max(1, abs(loss.item()))
    torch.testing.assert_close(gradient, numeric_gradient(function, x), rtol=1e-6, atol=1e-7)
