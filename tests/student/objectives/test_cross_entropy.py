"""Cross-entropy against plain loops: missing labels, smoothing, gradient."""

import math

import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.objectives.cross_entropy import CrossEntropy, cross_entropy
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract


class TestContract(ObjectiveContract):
    def make_objective(self):
        return CrossEntropy(DIMENSIONS)


class TestSmoothedContract(ObjectiveContract):
    def make_objective(self):
        return CrossEntropy(DIMENSIONS, label_smoothing=0.1)


def by_hand(logits, labels, smoothing):
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label == NO_LABEL:
            continue
        normaliser = math.log(sum(math.exp(z) for z in row))
        target = [smoothing / len(row) + (1 - smoothing) * (index == label) for index in range(len(row))]
        losses.append(-sum(p * (z - normaliser) for p, z in zip(target, row, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_is_the_mean_over_labelled_rows(smoothing):
    logits = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([2, NO_LABEL, 0, 3, NO_LABEL])
    loss = cross_entropy(logits, labels, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(by_hand(logits, labels, smoothing), rel=1e-12)


def test_gradient_is_probability_less_target_over_labelled_rows():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    cross_entropy(logits, torch.tensor([1, NO_LABEL, 3])).backward()
    expected = logits.detach().softmax(dim=1) / 2
    expected[0, 1] -= 0.5
    expected[2, 3] -= 0.5
    expected[1] = 0
    torch.testing.assert_close(logits.grad, expected)


def test_no_label_at_all_gives_zero_with_a_graph():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((3,), NO_LABEL), label_smoothing=0.1)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_impossible_smoothing_is_refused(smoothing):
    with pytest.raises(UsageError, match="label_smoothing"):
        CrossEntropy(DIMENSIONS, label_smoothing=smoothing)
