"""Cosine distance and squared error against plain loops and their closed-form gradients."""

import math

import pytest
import torch

from student.objectives.cosine import Cosine, cosine_distance
from student.objectives.mse import MeanSquaredError
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract, random_batch, random_outputs


class TestCosineContract(ObjectiveContract):
    def make_objective(self):
        return Cosine(DIMENSIONS)


class TestMeanSquaredErrorContract(ObjectiveContract):
    def make_objective(self):
        return MeanSquaredError(DIMENSIONS)


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
