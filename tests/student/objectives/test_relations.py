"""RKD, SP and PKT against plain loops, their gradients against differences of those, and degenerate batches."""

import math

import numpy as np
import pytest
import torch

from featurecache.errors import UsageError
from student.objectives import Batch
from student.objectives.pkt import ProbabilisticTransfer
from student.objectives.rkd import RelationalDistillation
from student.objectives.sp import SimilarityPreserving
from tests.contracts.finite_differences import assert_same_loss_and_gradient
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract, random_batch, random_outputs


class TestRKDContract(ObjectiveContract):
    def make_objective(self):
        return RelationalDistillation(DIMENSIONS)


class TestSPContract(ObjectiveContract):
    def make_objective(self):
        return SimilarityPreserving(DIMENSIONS)


class TestPKTContract(ObjectiveContract):
    def make_objective(self):
        return ProbabilisticTransfer(DIMENSIONS)


def smooth_l1(a, b):
    apart = abs(a - b)
    return apart**2 / 2 if apart < 1 else apart - 0.5


def relative_distances(x):
    apart = [[math.dist(a, b) for b in x] for a in x]
    positive = [value for row in apart for value in row if value > 0]
    mean = sum(positive) / len(positive) if positive else 1
    return [value / mean for row in apart for value in row]


def unit(vector):
    length = math.hypot(*vector)
    return [value / length if length else 0.0 for value in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def angles(x):
    towards = [[unit([q - p for p, q in zip(a, b, strict=True)]) for b in x] for a in x]
    return [dot(row[j], row[k]) for row in towards for j in range(len(x)) for k in range(len(x))]


def mean_difference(a, b):
    return sum(smooth_l1(x, y) for x, y in zip(a, b, strict=True)) / len(a)


def rkd(student, teacher, *, distance=25.0, angle=50.0, most=64):
    of_distances = mean_difference(relative_distances(student), relative_distances(teacher))
    return distance * of_distances + angle * mean_difference(angles(student[:most]), angles(teacher[:most]))


def sp(student, teacher):
    def similarities(x):
        return [unit([dot(a, b) for b in x]) for a in x]

    s, t = similarities(student), similarities(teacher)
    return sum((p - q) ** 2 for a, b in zip(s, t, strict=True) for p, q in zip(a, b, strict=True)) / len(student) ** 2


def pkt(student, teacher):
    def probabilities(x):
        close = [[(dot(unit(a), unit(b)) + 1) / 2 for b in x] for a in x]
        return [value / sum(row) for row in close for value in row]

    s, t = probabilities(student), probabilities(teacher)
    return sum(q * math.log(q / max(p, 1e-7)) if q > 0 else 0 for p, q in zip(s, t, strict=True)) / len(student) ** 2


CASES = [(RelationalDistillation, rkd), (SimilarityPreserving, sp), (ProbabilisticTransfer, pkt)]


@pytest.mark.parametrize(("kind", "by_hand"), CASES)
@pytest.mark.parametrize("count", [2, 5])
def test_value_and_gradient_are_those_of_the_formula(kind, by_hand, count):
    outputs, batch = random_outputs(count, heads=()), random_batch(count, targets=("embedding",))
    teacher = batch.targets["embedding"].tolist()
    loss = kind(DIMENSIONS)(outputs, batch)
    assert loss > 0 or count == 2
    assert_same_loss_and_gradient(loss, lambda x: by_hand(x.tolist(), teacher), outputs["features"])


def test_rkd_takes_its_weights_and_a_part_of_the_batch_for_angles():
    outputs, batch = random_outputs(6, heads=()), random_batch(6, targets=("embedding",))
    teacher = batch.targets["embedding"].tolist()
    options = {"distance": 2.0, "angle": 3.0, "most": 4}
    loss = RelationalDistillation(DIMENSIONS, **options)(outputs, batch)
    assert_same_loss_and_gradient(loss, lambda x: rkd(x.tolist(), teacher, **options), outputs["features"])


@pytest.mark.parametrize(("kind", "by_hand"), CASES)
def test_what_the_teacher_has_up_to_scale_costs_nothing(kind, by_hand):
    batch = random_batch(5, targets=("embedding",))
    student = (3 * batch.targets["embedding"]).requires_grad_()
    loss = kind(DIMENSIONS)({"features": student}, batch)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15) and student.grad.abs().max() < 1e-7


@pytest.mark.parametrize(("kind", "by_hand"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_and_equal_features_have_finite_gradients(kind, by_hand, dtype):
    batch = random_batch(6, targets=("embedding",))
    targets = batch.targets["embedding"].to(dtype)
    features = torch.randn(6, 10, dtype=dtype)
    features[0] = 0
    features[2] = features[1]
    features[4] = -features[3]
    features[5] = features[1] + 1e-6
    for x in (features, torch.zeros_like(features), features[:1].expand(6, 10)):
        leaf = x.clone().requires_grad_()
        same = Batch(inputs={}, targets={"embedding": targets}, labels=batch.labels, rows=batch.rows)
        loss = kind(DIMENSIONS)({"features": leaf}, same)
        loss.backward()
        assert loss.item() == pytest.approx(by_hand(x.tolist(), targets.tolist()), rel=1e-3, abs=1e-6)
        assert leaf.grad.abs().max() < 1e8


def test_opposite_teacher_vectors_have_no_probability():
    batch = random_batch(2, targets=("embedding",))
    batch.targets["embedding"][1] = -batch.targets["embedding"][0]
    student = np.array([[1.0, 0.0], [0.0, 1.0]])
    loss = ProbabilisticTransfer(DIMENSIONS)({"features": torch.from_numpy(student)}, batch)
    # the teacher's rows are (1, 0), the student's (1, 1/2) / (3/2)
    assert loss.item() == pytest.approx(math.log(3 / 2) / 2, abs=1e-12)


@pytest.mark.parametrize("option", [{"distance": -1.0}, {"angle": -1.0}, {"most": 2}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        RelationalDistillation(DIMENSIONS, **option)
