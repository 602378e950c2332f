"""The optimizer's groups and steps, the schedule and the clipping, against their definitions."""

import itertools
import math

import pytest
import torch
from torch import nn

from student.distribute import clip_gradients
from student.optim import learning_rate, make_optimizer, trainable


class Small(nn.Module):
    """A matrix, a bias, a norm, a convolution, a scalar, and a frozen matrix."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.convolution = nn.Conv1d(2, 2, 1, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_matrices_decay_and_everything_else_does_not():
    small = Small()
    decayed, plain = make_optimizer([small], lr=0.1, weight_decay=0.3).param_groups
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0
    assert _same(decayed["params"], [small.linear.weight, small.convolution.weight])
    assert _same(plain["params"], [small.scale, small.linear.bias, small.norm.weight, small.norm.bias])


def test_the_order_is_that_of_the_modules_and_a_shared_parameter_counts_once():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    decayed, plain = make_optimizer([second, first, second], lr=0.1, weight_decay=0.1).param_groups
    assert _same(decayed["params"], [second.weight, first.weight])
    assert _same(plain["params"], [second.bias, first.bias])


def _same(parameters, expected):
    return len(parameters) == len(expected) and all(a is b for a, b in zip(parameters, expected, strict=True))


def test_a_step_is_adamw_with_decay_apart_from_the_gradient():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(2.0)
    optimizer = make_optimizer([layer], lr=0.1, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.full((1, 1), 3.0), torch.full((1,), 3.0)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1)  # Adam's first step has the size of the rate
    assert layer.bias.item() == pytest.approx(2 - 0.1)


def test_saved_optimizer_state_goes_on_to_the_same_weights():
    def run(layer, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            layer(torch.full((1, 3), float(step))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole, halved = nn.Linear(3, 2), nn.Linear(3, 2)
    halved.load_state_dict(whole.state_dict())
    run(whole, make_optimizer([whole], lr=0.1, weight_decay=0.1), range(6))
    begun = make_optimizer([halved], lr=0.1, weight_decay=0.1)
    run(halved, begun, range(3))
    resumed = make_optimizer([halved], lr=0.1, weight_decay=0.1)
    resumed.load_state_dict(begun.state_dict())
    run(halved, resumed, range(3, 6))
    assert torch.equal(halved.weight, whole.weight) and torch.equal(halved.bias, whole.bias)


def test_learning_rate_rises_in_a_line_and_falls_on_a_cosine():
    rates = [learning_rate(step, steps=104, warmup=4, peak=1.0, final=0.2) for step in range(120)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.6)
    assert rates[29] == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:105]))
    assert rates[104:] == pytest.approx([0.2] * 16)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 3), (2, 5)])
def test_learning_rate_of_very_short_runs_is_positive_and_at_most_the_peak(steps, warmup):
    rates = [learning_rate(step, steps=steps, warmup=warmup, peak=2.0) for step in range(steps)]
    assert all(0 < rate <= 2 for rate in rates)


def test_clipping_scales_all_gradients_together_and_tells_the_norm_before():
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
    first.weight.grad, second.weight.grad = torch.full((1, 1), 3.0), torch.full((1, 1), 4.0)
    assert clip_gradients(trainable([first, second]), max_norm=1.0).item() == pytest.approx(5)
    assert first.weight.grad.item() == pytest.approx(0.6, rel=1e-5)
    assert second.weight.grad.item() == pytest.approx(0.8, rel=1e-5)
    assert second.bias.grad is None
    assert clip_gradients(trainable([first, second]), max_norm=10.0).item() == pytest.approx(1, rel=1e-5)
    assert first.weight.grad.item() == pytest.approx(0.6, rel=1e-5)
