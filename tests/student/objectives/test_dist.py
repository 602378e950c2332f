"""Pearson correlations against the standard library's, their gradient, and what does not vary."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import TopLogits
from student.objectives.dist import DIST, correlations, dist
from tests.contracts.objective_contract import CLASSES, DIMENSIONS, ObjectiveContract, random_batch, random_outputs


class TestContract(ObjectiveContract):
    def make_objective(self):
        return DIST(DIMENSIONS)


def softmax(row, temperature):
    weights = [math.exp(z / temperature) for z in row]
    return [weight / sum(weights) for weight in weights]


def by_hand(student, teacher, temperature, beta, gamma):
    p_s, p_t = ([softmax(row, temperature) for row in logits.tolist()] for logits in (student, teacher))

    def apart(left, right):
        return 1 - statistics.fmean(statistics.correlation(a, b) for a, b in zip(left, right, strict=True))

    columns = [list(zip(*p, strict=True)) for p in (p_s, p_t)]
    return temperature**2 * (beta * apart(p_s, p_t) + gamma * apart(*columns))


@pytest.fixture
def student():
    return torch.randn(6, 5, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def teacher():
    return 2 * torch.randn(6, 5, dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "beta", "gamma"), [(1.0, 1.0, 1.0), (4.0, 2.0, 0.0), (2.0, 0.0, 3.0)])
def test_correlations_of_rows_and_of_classes_and_their_gradient(student, teacher, temperature, beta, gamma):
    options = {"temperature": temperature, "beta": beta, "gamma": gamma}
    loss = dist(student, teacher, **options)
    loss.backward()
    assert loss.item() == pytest.approx(by_hand(student, teacher, **options), rel=1e-9)
    step = 1e-5
    for row in range(6):
        for column in range(5):
            moved = [student.detach().clone() for _ in range(2)]
            moved[0][row, column] += step
            moved[1][row, column] -= step
            above, below = (by_hand(each, teacher, **options) for each in moved)
            assert student.grad[row, column].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)


def test_the_objective_is_made_of_its_options():
    outputs, batch = random_outputs(6, heads=("logits",)), random_batch(6, targets=("logits",))
    options = {"temperature": 4.0, "beta": 0.5, "gamma": 2.0}
    expected = by_hand(outputs["logits"], batch.targets["logits"], **options)
    assert DIST(DIMENSIONS, **options)(outputs, batch).item() == pytest.approx(expected, rel=1e-9)


def test_any_line_correlates_fully():
    values = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(correlations(3 * values + 2, values), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(correlations(-values, values), -torch.ones(4, dtype=torch.float64))


def test_one_row_has_no_classes_to_correlate(student, teacher):
    """The second part is gamma, without a gradient; the first is as ever."""
    first = student[:1].detach().requires_grad_()
    both = dist(first, teacher[:1], gamma=3.0)
    both.backward()
    alone = first.detach().requires_grad_()
    rows = dist(alone, teacher[:1], gamma=0.0)
    rows.backward()
    assert both.item() == pytest.approx(rows.item() + 3)
    torch.testing.assert_close(first.grad, alone.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_does_not_vary_correlates_with_nothing_and_breaks_no_gradient(dtype):
    student = torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 0.5]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]], dtype=dtype)
    loss = dist(student, teacher, gamma=0.0)
    loss.backward()
    assert loss == 1 and torch.equal(student.grad, torch.zeros_like(student))
    same = student.detach()[:1].expand(4, -1).clone().requires_grad_()
    loss = dist(same, torch.randn(4, 3, dtype=dtype), beta=0.0)  # the classes of equal rows
    loss.backward()
    assert loss.item() == 1 and same.grad.isfinite().all()


def test_classes_of_tiny_probability_still_correlate_in_float32():
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    logits[:, 2] -= 30
    found = dist(logits, 1.5 * logits, beta=0.0)
    expected = by_hand(logits, 1.5 * logits, 1.0, 0.0, 1.0)
    assert found.item() == pytest.approx(expected, abs=1e-4)


def test_sparse_logits_are_refused():
    batch = random_batch(3, targets=("logits",))
    values, indices = batch.targets["logits"].topk(2, dim=1)
    kept = TopLogits(values, indices, values[:, :1], temperatures=(1.0,), size=CLASSES)
    with pytest.raises(UsageError, match="dist needs every class's logit"):
        DIST(DIMENSIONS)(random_outputs(3, heads=("logits",)), replace(batch, targets={"logits": kept}))


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"temperature": math.inf}, {"beta": -1.0}, {"gamma": -1.0}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        DIST(DIMENSIONS, **option)
