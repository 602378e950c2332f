"""Directions and distances: their values, and gradients where vectors vanish or coincide."""

import math

import pytest
import torch

from student.objectives.geometry import directions, distances


def test_directions_have_length_one_and_their_vectors_direction():
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = [[value / math.hypot(*row) for value in row] for row in x.tolist()]
    torch.testing.assert_close(directions(x), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_vector_has_no_direction_and_no_gradient(dtype):
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    unit = directions(x)
    unit.sum().backward()
    torch.testing.assert_close(unit.detach(), torch.tensor([[0, 0], [0.6, 0.8]], dtype=dtype))
    torch.testing.assert_close(x.grad, torch.tensor([[0, 0], [0.032, -0.024]], dtype=dtype))


def test_distances_are_exact_for_close_neighbours_far_from_zero():
    x = torch.tensor([[1000.0, 1000.0], [1000.001, 1000.0], [1000.0, 1003.0]])
    expected = [[math.dist(a, b) for b in x.tolist()] for a in x.tolist()]
    torch.testing.assert_close(distances(x), torch.tensor(expected), rtol=1e-6, atol=0)


def test_equal_vectors_have_distance_zero_and_a_finite_gradient():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]], dtype=torch.float64, requires_grad=True)
    apart = distances(x)
    apart.sum().backward()
    assert apart[0, 1] == 0 and apart[0, 2] == 5
    torch.testing.assert_close(x.grad[0], torch.tensor([-1.2, -1.6], dtype=torch.float64))


def test_gradients_agree_with_finite_differences():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(directions, x)
    assert torch.autograd.gradcheck(lambda value: distances(value).square().sum() + distances(value).sum(), x)
