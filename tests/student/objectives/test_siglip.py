"""SigLIP against a plain loop, its learned scale and bias included, and other views of the same sample."""

import math

import pytest
import torch

from student.objectives import Batch
from student.objectives.siglip import SigLIP
from tests.contracts.finite_differences import assert_same_loss_and_gradient
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract, random_batch, random_outputs


class TestContract(ObjectiveContract):
    def make_objective(self):
        return SigLIP(DIMENSIONS)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def by_hand(student, teacher, rows, log_scale, bias):
    total, count = 0.0, len(student)
    for i in range(count):
        for j in range(count):
            if i != j and rows[i] == rows[j]:
                continue
            logit = math.exp(log_scale) * cosine(student[i], teacher[j]) + bias
            total += math.log(1 + math.exp(-logit if i == j else logit))
    return total / count


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [5, 2, 5, 5]])
def test_value_and_gradients_are_those_of_the_formula(rows):
    outputs, drawn = random_outputs(4, heads=("embedding",)), random_batch(4, targets=("embedding",))
    batch = Batch(inputs={}, targets=drawn.targets, labels=drawn.labels, rows=torch.tensor(rows))
    teacher, student = batch.targets["embedding"].tolist(), outputs["embedding"].tolist()
    objective = SigLIP(DIMENSIONS).double()
    with torch.no_grad():
        objective.log_scale.fill_(1.2)
        objective.bias.fill_(-0.7)
    loss = objective(outputs, batch)
    for_scale, for_bias = torch.autograd.grad(loss, (objective.log_scale, objective.bias), retain_graph=True)
    assert_same_loss_and_gradient(loss, lambda x: by_hand(x.tolist(), teacher, rows, 1.2, -0.7), outputs["embedding"])
    step = 1e-5
    scale_difference = [by_hand(student, teacher, rows, 1.2 + change, -0.7) for change in (step, -step)]
    bias_difference = [by_hand(student, teacher, rows, 1.2, -0.7 + change) for change in (step, -step)]
    assert for_scale.item() == pytest.approx((scale_difference[0] - scale_difference[1]) / (2 * step), rel=1e-6)
    assert for_bias.item() == pytest.approx((bias_difference[0] - bias_difference[1]) / (2 * step), rel=1e-6)


def test_starts_at_the_papers_scale_and_bias():
    objective = SigLIP(DIMENSIONS)
    assert objective.log_scale.item() == pytest.approx(math.log(10)) and objective.bias.item() == -10
