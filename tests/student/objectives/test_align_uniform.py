"""Alignment and uniformity against plain loops and their known values on the sphere."""

import math

import pytest
import torch
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.align_uniform import AlignUniform, alignment, uniformity
from tests.contracts.objective_contract import (
    DIMENSIONS,
    FEATURES,
    WIDTH,
    ObjectiveContract,
    random_batch,
    random_outputs,
)


class TestContract(ObjectiveContract):
    def make_objective(self):
        return AlignUniform(DIMENSIONS)


def on_the_sphere(count, dim):
    return F.normalize(torch.randn(count, dim, dtype=torch.float64), dim=1)


def distance(a, b):
    return math.dist(a.tolist(), b.tolist())


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_the_mean_distance_to_a_power(alpha):
    u, v = on_the_sphere(6, 4), on_the_sphere(6, 4)
    expected = sum(distance(a, b) ** alpha for a, b in zip(u, v, strict=True)) / 6
    assert alignment(u, v, alpha=alpha).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_is_the_log_mean_over_unordered_pairs(t):
    x = on_the_sphere(6, 4)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    expected = math.log(sum(math.exp(-t * distance(x[i], x[j]) ** 2) for i, j in pairs) / len(pairs))
    assert uniformity(x, t=t).item() == pytest.approx(expected, rel=1e-12)


def test_uniformity_gradient_agrees_with_finite_differences():
    raw = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: uniformity(F.normalize(x, dim=1)), raw)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_identical_pairs_are_aligned_with_a_finite_gradient(alpha):
    u = on_the_sphere(6, 4)
    v = u.clone().requires_grad_()
    loss = alignment(u, v, alpha=alpha)
    loss.backward()
    assert loss == 0 and v.grad.isfinite().all()


def test_random_points_have_the_known_values():
    u, v = on_the_sphere(2000, 128), on_the_sphere(2000, 128)
    assert alignment(u, v).item() == pytest.approx(2, abs=0.02)
    assert uniformity(u).item() == pytest.approx(-4 + 16 / 256, abs=0.01)  # about -3.94


def test_collapsed_points_are_not_uniform():
    assert uniformity(on_the_sphere(1, 8).expand(5, 8)).item() == pytest.approx(0, abs=1e-12)


def test_one_vector_has_no_uniformity():
    x = on_the_sphere(1, 8).requires_grad_()
    loss = uniformity(x)
    loss.backward()
    assert loss == 0 and torch.equal(x.grad, torch.zeros_like(x))


def test_the_loss_weighs_alignment_and_half_of_both_uniformities():
    objective = AlignUniform(DIMENSIONS, alpha=3.0, t=1.5, align=0.7, uniform=0.2).double()
    outputs, batch = random_outputs(8, heads=()), random_batch(8, targets=("embedding",))

    def project(projector, x):
        hidden = (x @ projector.hidden.weight.T + projector.hidden.bias).clamp(min=0)
        out = hidden @ projector.out.weight.T + projector.out.bias
        return out / out.pow(2).sum(dim=1, keepdim=True).sqrt()

    u = project(objective.student_projector, outputs["features"])
    v = project(objective.teacher_projector, batch.targets["embedding"])
    spread = (uniformity(u, t=1.5) + uniformity(v, t=1.5)) / 2
    torch.testing.assert_close(objective(outputs, batch), 0.7 * alignment(u, v, alpha=3.0) + 0.2 * spread)


def test_projectors_have_the_shapes_of_both_sides():
    shapes = {name: tuple(value.shape) for name, value in AlignUniform(DIMENSIONS).state_dict().items()}
    assert shapes["student_projector.hidden.weight"] == (FEATURES, FEATURES)
    assert shapes["student_projector.out.weight"] == (128, FEATURES)
    assert shapes["teacher_projector.hidden.weight"] == (WIDTH, WIDTH)
    assert shapes["teacher_projector.out.weight"] == (128, WIDTH)


@pytest.mark.parametrize("option", [{"alpha": 0.5}, {"t": 0.0}, {"align": -1.0}, {"uniform": -1.0}, {"projection": 1}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        AlignUniform(DIMENSIONS, **option)
