"""Decoupled distillation by plain loops: value, gradient, its identity with KL, rows without labels, mixed ones."""

import math
from dataclasses import replace

import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL, SampledLogits
from student.objectives.base import Dimensions, Mix
from student.objectives.dkd import DecoupledKD, decoupled_kd
from student.objectives.kl import kl_divergence, standardised
from tests.contracts.objective_contract import CLASSES, DIMENSIONS, ObjectiveContract, random_batch, random_outputs

LABELS = torch.tensor([3, NO_LABEL, 0, 5, 3])


class TestContract(ObjectiveContract):
    def make_objective(self):
        return DecoupledKD(DIMENSIONS)


class TestStandardisedContract(ObjectiveContract):
    def make_objective(self):
        return DecoupledKD(DIMENSIONS, temperature=2.0, alpha=0.5, beta=2.0, standardise=True)


def softmax(row, temperature):
    weights = [math.exp(z / temperature) for z in row]
    return [weight / sum(weights) for weight in weights]


def parts_by_hand(student, teacher, label, temperature):
    """KL of (target, others), and KL among the others, of one row."""
    p_s, p_t = softmax(student, temperature), softmax(teacher, temperature)
    b_s, b_t = (p_s[label], 1 - p_s[label]), (p_t[label], 1 - p_t[label])
    others = [index for index in range(len(student)) if index != label]
    q_s, q_t = ([p[index] / (1 - p[label]) for index in others] for p in (p_s, p_t))
    return tuple(sum(t * math.log(t / s) for t, s in zip(*pair, strict=True)) for pair in ((b_t, b_s), (q_t, q_s)))


@pytest.fixture
def student():
    return torch.randn(5, CLASSES, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def teacher():
    return 2 * torch.randn(5, CLASSES, dtype=torch.float64)


def mean_by_hand(student, teacher, temperature, alpha, beta):
    rows = list(zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True))
    found = [parts_by_hand(s, t, label, temperature) for s, t, label in rows if label != NO_LABEL]
    return temperature**2 * sum(alpha * target + beta * others for target, others in found) / len(found)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(4.0, 1.0, 8.0), (1.0, 0.5, 0.0), (2.0, 0.0, 3.0)])
def test_is_the_mean_over_labelled_rows_and_its_gradient_agrees(student, teacher, temperature, alpha, beta):
    batch = replace(random_batch(5, targets=()), targets={"logits": teacher}, labels=LABELS)
    objective = DecoupledKD(DIMENSIONS, temperature=temperature, alpha=alpha, beta=beta)
    loss = objective({"logits": student}, batch)
    loss.backward()
    assert loss.item() == pytest.approx(mean_by_hand(student, teacher, temperature, alpha, beta), rel=1e-10)
    step = 1e-6
    for row, column in ((0, 3), (0, 1), (1, 2), (2, 0), (4, 6)):
        moved = [student.detach().clone() for _ in range(2)]
        moved[0][row, column] += step
        moved[1][row, column] -= step
        above, below = (mean_by_hand(each, teacher, temperature, alpha, beta) for each in moved)
        assert student.grad[row, column].item() == pytest.approx((above - below) / (2 * step), abs=1e-6)
    assert torch.equal(student.grad[1], torch.zeros(CLASSES, dtype=torch.float64))


def test_plain_kl_is_the_first_part_and_one_less_the_targets_probability_times_the_second(student, teacher):
    labels, options = torch.tensor([3, 1, 0, 5, 3]), {"temperature": 4.0}
    first = decoupled_kd(student, teacher, labels, alpha=1.0, beta=0.0, **options)
    second = decoupled_kd(student, teacher, labels, alpha=0.0, beta=1.0, **options)
    p_target = (teacher / 4).softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(
        (first + (1 - p_target) * second).mean(), kl_divergence(student, teacher, temperature=4.0)
    )


def test_others_are_told_apart_in_float32_where_the_target_is_certain():
    """With p_y = 1 in float32 the others' softmax is that of their own logits, far beyond a difference of 1,000."""
    student = torch.tensor([[3000.0, 1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[90.0, 0.0, 1.0]])
    loss = decoupled_kd(student, teacher, torch.tensor([0]), temperature=1.0, alpha=0.0, beta=1.0)
    loss.sum().backward()
    q, p = (softmax(row, 1.0) for row in ([0, 1], [1, 0]))
    assert loss.item() == pytest.approx(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)), rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, p[0] - q[0], p[1] - q[1]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_and_opposite_is_finite(dtype):
    student = torch.tensor([[-400.0, 500.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[400.0, -500.0, 0.0]], dtype=dtype)
    loss = decoupled_kd(student, teacher, torch.tensor([0])).sum()
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_without_any_label_it_is_exactly_0_and_teaches_nothing(student, teacher):
    batch = replace(random_batch(5, targets=()), targets={"logits": teacher}, labels=torch.full((5,), NO_LABEL))
    loss = DecoupledKD(DIMENSIONS)({"logits": student}, batch)
    loss.backward()
    assert loss == 0 and torch.equal(student.grad, torch.zeros_like(student))


def test_a_mixed_row_counts_both_labels_by_their_shares(student, teacher):
    share, others = torch.tensor([0.25, 0.5, 1, 0.6, 0.5]), torch.tensor([2, 1, NO_LABEL, NO_LABEL, 3])
    batch = replace(random_batch(5, targets=()), targets={"logits": teacher}, labels=LABELS, mix=Mix(others, share))
    total = 0.0
    for row, (label, other, part) in enumerate(zip(LABELS.tolist(), others.tolist(), share.tolist(), strict=True)):
        for weight, kind in ((part, label), (1 - part, other)):
            if label != NO_LABEL and kind != NO_LABEL:
                first, second = parts_by_hand(student[row].tolist(), teacher[row].tolist(), kind, 4.0)
                total += 16 * weight * (first + 8 * second)
    assert DecoupledKD(DIMENSIONS)({"logits": student}, batch).item() == pytest.approx(total / 4, rel=1e-6)


def test_standardises_both_sides():
    outputs, batch = random_outputs(6, heads=("logits",)), random_batch(6, targets=("logits",))
    brought = replace(batch, targets={"logits": standardised(batch.targets["logits"])})
    expected = DecoupledKD(DIMENSIONS)({"logits": standardised(outputs["logits"])}, brought)
    torch.testing.assert_close(DecoupledKD(DIMENSIONS, standardise=True)(outputs, batch), expected)


def test_sparse_logits_are_refused():
    batch = random_batch(2, targets=("logits",))
    drawn = SampledLogits(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1), torch.zeros(2), 4.0, CLASSES)
    with pytest.raises(UsageError, match="dkd needs every class's logit") as caught:
        DecoupledKD(DIMENSIONS)(random_outputs(2, heads=("logits",)), replace(batch, targets={"logits": drawn}))
    assert "`--encode logits=float16`" in caught.value.hint


def test_classes_that_do_not_correspond_are_refused():
    apart = Dimensions(features=3, targets={"logits": CLASSES}, labels_are_logits=False)
    with pytest.raises(UsageError, match="dkd needs each label's own logit") as caught:
        DecoupledKD(apart)
    assert "--class-map" in caught.value.hint
    with pytest.raises(UsageError, match="at least two classes"):
        DecoupledKD(Dimensions(features=3, targets={"logits": 1}))


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"temperature": math.nan}, {"alpha": -1.0}, {"beta": -1.0}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        DecoupledKD(DIMENSIONS, **option)
