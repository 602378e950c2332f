"""VICReg against numpy's own variances and covariances, through the plain head and through expanders."""

import numpy as np
import pytest
import torch

from featurecache.errors import UsageError
from student.objectives.vicreg import VICReg, covariance_penalty, variance_penalty
from tests.contracts.finite_differences import assert_same_loss_and_gradient
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
        return VICReg(DIMENSIONS, expander=16)


class TestPlainHeadContract(ObjectiveContract):
    def make_objective(self):
        return VICReg(DIMENSIONS, expander=0)


def spread_and_correlation(x):
    deviations = [np.sqrt(np.var(column, ddof=1) + 1e-4) for column in x.T]
    covariance = np.cov(x.T)
    off = sum(covariance[i, j] ** 2 for i in range(len(covariance)) for j in range(len(covariance)) if i != j)
    return np.mean([max(0.0, 1 - value) for value in deviations]), off / x.shape[1]


def expanded(layers, x):
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        elif isinstance(layer, torch.nn.LayerNorm):
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        else:
            x = np.maximum(x, 0)
    return x


def by_hand(objective, features, embedding, weights):
    if objective.teacher_expander is None:
        x, y = expanded([objective.student_expander], features), embedding
        sides = [x]
    else:
        x, y = expanded(objective.student_expander, features), expanded(objective.teacher_expander, embedding)
        sides = [x, y]
    spread, correlation = np.sum([spread_and_correlation(side) for side in sides], axis=0)
    invariance, variance, covariance = weights
    return invariance * ((x - y) ** 2).mean() + variance * spread / 2 + covariance * correlation


@pytest.mark.parametrize("expander", [0, 5])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (0.5, 3.0, 7.0)])
def test_value_and_gradient_are_those_of_the_formula(expander, weights):
    outputs, batch = random_outputs(6, heads=()), random_batch(6, targets=("embedding",))
    invariance, variance, covariance = weights
    objective = VICReg(
        DIMENSIONS, invariance=invariance, variance=variance, covariance=covariance, expander=expander
    ).double()
    embedding = batch.targets["embedding"].numpy()
    assert_same_loss_and_gradient(
        objective(outputs, batch), lambda x: by_hand(objective, x, embedding, weights), outputs["features"]
    )


def test_the_papers_weights_are_the_defaults():
    outputs, batch = random_outputs(6, heads=()), random_batch(6, targets=("embedding",))
    objective = VICReg(DIMENSIONS).double()
    assert objective.student_expander[0].weight.shape == (512, FEATURES)
    assert objective.teacher_expander[0].weight.shape == (512, WIDTH)
    expected = by_hand(objective, outputs["features"].detach().numpy(), batch.targets["embedding"].numpy(), (25, 25, 1))
    assert objective(outputs, batch).item() == pytest.approx(expected, rel=1e-10)


def test_a_collapsed_side_has_the_whole_hinge_and_a_finite_gradient():
    x = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    spread = variance_penalty(x)
    (spread + covariance_penalty(x)).backward()
    assert spread.item() == pytest.approx(0.99) and x.grad.isfinite().all()


def test_uncorrelated_dimensions_of_deviation_one_cost_nothing():
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert variance_penalty(x) == 0 and covariance_penalty(x) == 0


def test_one_sample_has_neither_variance_nor_covariance():
    x = torch.randn(1, 3, requires_grad=True)
    (variance_penalty(x) + covariance_penalty(x)).backward()
    assert torch.equal(x.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("option", [{"invariance": -1.0}, {"variance": -1.0}, {"covariance": -1.0}, {"expander": 1}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        VICReg(DIMENSIONS, **option)
