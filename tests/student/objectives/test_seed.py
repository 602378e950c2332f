"""SEED against plain loops: with a bank, without one, and what its two temperatures do."""

import math

import pytest
import torch
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives import Batch
from student.objectives.seed import SEED
from tests.contracts.finite_differences import assert_same_loss_and_gradient
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract, random_batch, random_outputs


class TestContract(ObjectiveContract):
    def make_objective(self):
        return SEED(DIMENSIONS, negatives=7)


class TestWithoutBankContract(ObjectiveContract):
    def make_objective(self):
        return SEED(DIMENSIONS, negatives=0)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def softmax(scores):
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def by_hand(student, teacher, bank, temperature, teacher_temperature):
    total = 0.0
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        choices = [t, *bank] if bank else [t, *teacher[:i], *teacher[i + 1 :]]
        target = softmax([cosine(t, choice) / teacher_temperature for choice in choices])
        answer = softmax([cosine(s, choice) / temperature for choice in choices])
        total -= sum(q * math.log(p) for q, p in zip(target, answer, strict=True))
    return total / len(student)


@pytest.mark.parametrize("negatives", [0, 7])
@pytest.mark.parametrize("temperatures", [(0.2, 0.01), (0.5, 0.3)])
def test_value_and_gradient_are_those_of_the_formula(negatives, temperatures):
    outputs = random_outputs(4, heads=("embedding",))
    batch = random_batch(4, targets=("embedding",), bank_rows=negatives)
    teacher = batch.targets["embedding"].tolist()
    bank = batch.bank["embedding"].tolist() if batch.bank else []
    temperature, of_teacher = temperatures
    objective = SEED(DIMENSIONS, negatives=negatives, temperature=temperature, teacher_temperature=of_teacher)
    assert objective.bank_rows == negatives
    loss = objective(outputs, batch)
    assert_same_loss_and_gradient(
        loss, lambda x: by_hand(x.tolist(), teacher, bank, temperature, of_teacher), outputs["embedding"]
    )


def test_a_validation_batch_without_its_bank_is_compared_with_itself():
    outputs, batch = random_outputs(5, heads=("embedding",)), random_batch(5, targets=("embedding",))
    assert torch.equal(SEED(DIMENSIONS)(outputs, batch), SEED(DIMENSIONS, negatives=0)(outputs, batch))


def test_a_student_that_is_the_teacher_is_at_the_minimum_when_the_temperatures_agree():
    batch = random_batch(5, targets=("embedding",), bank_rows=9)
    student = batch.targets["embedding"].clone().requires_grad_()
    SEED(DIMENSIONS, temperature=0.3, teacher_temperature=0.3)({"embedding": student}, batch).backward()
    assert student.grad.abs().max() < 1e-12


def test_at_the_temperature_of_the_papers_code_only_the_sample_itself_is_left():
    outputs = random_outputs(4, heads=("embedding",))
    batch = random_batch(4, targets=("embedding",), bank_rows=6)
    batch.bank["embedding"][0] = batch.targets["embedding"][1] + 0.3  # a near neighbour of one of them
    u, v, others = (
        F.normalize(x, dim=1) for x in (outputs["embedding"], *batch.targets.values(), *batch.bank.values())
    )
    scores = torch.cat([(u * v).sum(1, keepdim=True), u @ others.T], dim=1) / 0.2
    infonce = F.cross_entropy(scores, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(SEED(DIMENSIONS, teacher_temperature=1e-4)(outputs, batch), infonce)


def test_a_neighbour_at_99_hundredths_counts_a_third_of_the_sample_itself():
    own, near = [1.0, 0.0], [0.99, math.sqrt(1 - 0.99**2)]
    batch = Batch(
        inputs={},
        targets={"embedding": torch.tensor([own], dtype=torch.float64)},
        labels=torch.tensor([0]),
        rows=torch.tensor([0]),
        bank={"embedding": torch.tensor([near], dtype=torch.float64)},
    )
    student = torch.tensor([[0.0, 1.0]], dtype=torch.float64)  # scores of 0 and 5 * near[1]
    odds = math.exp(-1)
    score = 5 * near[1]
    expected = math.log(1 + math.exp(score)) - odds / (1 + odds) * score
    assert SEED(DIMENSIONS)({"embedding": student}, batch).item() == pytest.approx(expected, rel=1e-9)
    assert odds == pytest.approx(0.37, abs=0.01)


@pytest.mark.parametrize("option", [{"negatives": -1}, {"temperature": 0.0}, {"teacher_temperature": 0.0}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        SEED(DIMENSIONS, **option)
