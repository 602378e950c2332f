"""Cosine distance, squared and smooth error against plain loops and their closed-form gradients."""

import math

import pytest
import torch

from featurecache.errors import UsageError
from student.objectives.cosine import Cosine, cosine_distance
from student.objectives.mse import MeanSquaredError
from student.objectives.smooth_l1 import SmoothL1
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract, random_batch, random_outputs


class TestCosineContract(ObjectiveContract):
    def make_objective(self):
        return Cosine(DIMENSIONS)


class TestMeanSquaredErrorContract(ObjectiveContract):
    def make_objective(self):
        return MeanSquaredError(DIMENSIONS)


class TestSmoothL1Contract(ObjectiveContract):
    def make_objective(self):
        return SmoothL1(DIMENSIONS)


@pytest.fixture
def outputs():
    return random_outputs(4, heads=("embedding",))


@pytest.fixture
def batch():
    return random_batch(4, targets=("embedding",))


def test_cosine_is_one_less_the_mean_cosine(outputs, batch):
    pairs = zip(outputs["embedding"].tolist(), batch.targets["embedding"].tolist(), strict=True)
    cosines = [sum(a * b for a, b in zip(s, t, strict=True)) / math.hypot(*s) / math.hypot(*t) for s, t in pairs]
    assert Cosine(DIMENSIONS)(outputs, batch).item() == pytest.approx(1 - sum(cosines) / 4, rel=1e-12)


def test_cosine_ignores_length_and_ends_at_zero_and_two():
    vectors = torch.randn(5, 3, dtype=torch.float64)
    assert cosine_distance(3 * vectors, vectors).item() == pytest.approx(0, abs=1e-12)
    assert cosine_distance(-vectors, vectors).item() == pytest.approx(2)


def test_squared_error_is_the_mean_over_batch_and_dimensions(outputs, batch):
    student, teacher = outputs["embedding"], batch.targets["embedding"]
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    squares = [(s - t) ** 2 for s, t in pairs]
    loss = MeanSquaredError(DIMENSIONS)(outputs, batch)
    loss.backward()
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / len(squares))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_smooth_error_is_squared_up_to_beta_and_linear_beyond(beta, outputs, batch):
    student, teacher = outputs["embedding"], batch.targets["embedding"]
    apart = [abs(s - t) for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    assert any(value < 0.5 for value in apart) and any(value > 1 for value in apart)
    losses = [value**2 / (2 * beta) if value < beta else value - beta / 2 for value in apart]
    loss = SmoothL1(DIMENSIONS, beta=beta)(outputs, batch)
    loss.backward()
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    slope = ((student - teacher).detach() / beta).clamp(-1, 1) if beta else (student - teacher).detach().sign()
    torch.testing.assert_close(student.grad, slope / len(losses))
    assert SmoothL1(DIMENSIONS).beta == 1


@pytest.mark.parametrize("beta", [-1.0, math.inf, math.nan])
def test_an_impossible_beta_is_refused(beta):
    with pytest.raises(UsageError, match="beta"):
        SmoothL1(DIMENSIONS, beta=beta)
