"""KL divergence against plain loops: dense, sparse with a bucket, tiny masses, temperatures."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import TopLogits
from student.objectives.kl import KLDivergence, kl_divergence, standardised
from student.objectives.sparse import sparse_kl_divergence
from tests.contracts.objective_contract import CLASSES, DIMENSIONS, ObjectiveContract, random_batch, random_outputs


def sparse(logits, k, temperatures=(1.0, 4.0)):
    """The k largest logits and the logsumexp of all, as the top-k encoding keeps them."""
    values, indices = logits.topk(k, dim=1)
    sums = torch.stack([(logits / temperature).logsumexp(dim=1) for temperature in temperatures], dim=1)
    return TopLogits(values, indices, sums, temperatures=temperatures, size=logits.shape[1])


def softmax(row, temperature):
    weights = [math.exp(z / temperature) for z in row]
    return [weight / sum(weights) for weight in weights]


def divergence(teacher, student):
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True) if t > 0)


def dense_by_hand(student, teacher, temperature):
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    found = [divergence(softmax(t, temperature), softmax(s, temperature)) for s, t in rows]
    return temperature**2 * sum(found) / len(found)


def bucket_by_hand(student, teacher, k, temperature):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        kept = sorted(range(len(t)), key=lambda index: -t[index])[:k]
        p_t, p_s = softmax(t, temperature), softmax(s, temperature)
        rest = [index for index in range(len(t)) if index not in kept]
        total += divergence(
            [p_t[index] for index in kept] + [math.fsum(p_t[index] for index in rest)],
            [p_s[index] for index in kept] + [math.fsum(p_s[index] for index in rest)],
        )
    return temperature**2 * total / len(student)


class TestContract(ObjectiveContract):
    def make_objective(self):
        return KLDivergence(DIMENSIONS)


class TestStandardisedContract(ObjectiveContract):
    def make_objective(self):
        return KLDivergence(DIMENSIONS, temperature=2.0, standardise=True)


@pytest.fixture
def student():
    return torch.randn(5, 9, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def teacher():
    return 3 * torch.randn(5, 9, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_dense_is_the_mean_over_rows_times_temperature_squared(student, teacher, temperature):
    loss = kl_divergence(student, teacher, temperature=temperature)
    assert loss.item() == pytest.approx(dense_by_hand(student, teacher, temperature), rel=1e-12)


def test_dense_gradient_is_the_difference_of_probabilities(student, teacher):
    kl_divergence(student, teacher, temperature=4.0).backward()
    expected = 4 * ((student / 4).softmax(dim=1) - (teacher / 4).softmax(dim=1)) / 5
    torch.testing.assert_close(student.grad, expected.detach())


def test_equal_logits_up_to_a_constant_diverge_by_nothing(teacher):
    assert kl_divergence(teacher + 7, teacher, temperature=2.0).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_sparse_puts_all_other_classes_into_one_bucket(student, teacher, k, temperature):
    loss = sparse_kl_divergence(student, sparse(teacher, k), temperature=temperature)
    assert loss.item() == pytest.approx(bucket_by_hand(student, teacher, k, temperature), rel=1e-10)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_sparse_is_never_more_than_dense(student, teacher, k):
    bucket = sparse_kl_divergence(student, sparse(teacher, k), temperature=1.0)
    assert 0 <= bucket <= kl_divergence(student, teacher, temperature=1.0)


def test_sparse_with_all_classes_is_dense(student, teacher):
    bucket = sparse_kl_divergence(student, sparse(teacher, 9), temperature=4.0)
    dense = kl_divergence(student, teacher, temperature=4.0)
    torch.testing.assert_close(bucket, dense)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (bucket, dense)))


@pytest.mark.parametrize("k", [1, 3, 9])
def test_sparse_gradient_agrees_with_finite_differences(student, teacher, k):
    targets = sparse(teacher, k)
    assert torch.autograd.gradcheck(lambda logits: sparse_kl_divergence(logits, targets, temperature=4.0), student)


def test_float32_keeps_value_and_gradient_where_the_rest_is_tiny():
    """A student sure of the stored classes: 1 - (their mass) would be exactly 0 in float32, and the loss infinite."""
    student = torch.tensor([[40.0, 38.0, 0.0, -1.0, -2.0]], dtype=torch.float64)
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.2]], dtype=torch.float64)
    exact, single = student.clone().requires_grad_(), student.float().requires_grad_()
    reference = bucket_by_hand(student, teacher, 2, 1.0)
    loss = sparse_kl_divergence(single, sparse(teacher.float(), 2), temperature=1.0)
    loss.backward()
    sparse_kl_divergence(exact, sparse(teacher, 2), temperature=1.0).backward()
    assert loss.item() == pytest.approx(reference, rel=1e-5)
    torch.testing.assert_close(single.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)


def test_a_sure_teacher_leaves_nothing_in_the_bucket():
    teacher = torch.tensor([[200.0, 0.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    loss = sparse_kl_divergence(student, sparse(teacher, 1), temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    torch.testing.assert_close(student.grad, torch.tensor([[-2 / 3, 1 / 3, 1 / 3]]))


def test_rounded_values_never_give_a_negative_divergence():
    teacher = torch.tensor([[20.004, 19.0, 1.0, 0.0]])
    targets = sparse(teacher, 2, temperatures=(1.0,))
    rounded = TopLogits(targets.values.half() + 0.01, targets.indices, targets.logsumexp, temperatures=(1.0,), size=4)
    assert sparse_kl_divergence(teacher, rounded, temperature=1.0) >= 0


def test_a_temperature_that_was_not_stored_is_refused(student, teacher):
    with pytest.raises(UsageError) as caught:
        sparse_kl_divergence(student, sparse(teacher, 3), temperature=2.0)
    assert "no logsumexp at temperature 2; stored: 1, 4" in caught.value.message
    assert caught.value.hint == "use kl(temperature=1), or extract again with `--temperatures 1,4,2`"


def test_the_objective_takes_dense_and_sparse_targets():
    objective = KLDivergence(DIMENSIONS, temperature=1.0)
    outputs = random_outputs(4, heads=("logits",))
    batch = random_batch(4, targets=("logits",))
    dense = objective(outputs, batch)
    assert dense == kl_divergence(outputs["logits"], batch.targets["logits"], temperature=1.0)
    whole = replace(batch, targets={"logits": sparse(batch.targets["logits"], CLASSES)})
    torch.testing.assert_close(objective(outputs, whole), dense)


def standardised_by_hand(row):
    return [(value - statistics.fmean(row)) / statistics.pstdev(row) for value in row]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardised_logits_by_hand_and_their_gradient_by_finite_differences(student, teacher, temperature):
    def loss(student):
        return kl_divergence(standardised(student), standardised(teacher), temperature=temperature)

    pairs = (torch.tensor([standardised_by_hand(row) for row in each.tolist()]) for each in (student, teacher))
    assert loss(student).item() == pytest.approx(dense_by_hand(*pairs, temperature), rel=1e-6)
    assert torch.autograd.gradcheck(loss, student)


def test_only_the_shape_of_standardised_logits_counts():
    objective, outputs = KLDivergence(DIMENSIONS, standardise=True), random_outputs(4, heads=("logits",))
    batch = random_batch(4, targets=("logits",))
    torch.testing.assert_close(objective({"logits": 7 * outputs["logits"] - 3}, batch), objective(outputs, batch))
    assert objective({"logits": 0.1 * batch.targets["logits"] + 5}, batch).item() == pytest.approx(0, abs=1e-12)
    assert KLDivergence(DIMENSIONS)(outputs, batch) != objective(outputs, batch)


def test_a_constant_row_is_standardised_to_zeros_with_a_finite_gradient():
    logits = torch.full((2, 4), 3.0, requires_grad=True)
    found = standardised(logits)
    (found * torch.arange(4.0)).sum().backward()
    assert torch.equal(found, torch.zeros(2, 4)) and logits.grad.isfinite().all()


def test_sparse_logits_cannot_be_standardised():
    batch = random_batch(4, targets=("logits",))
    kept = replace(batch, targets={"logits": sparse(batch.targets["logits"], 2)})
    with pytest.raises(UsageError, match=r"kl\(standardise=1\) needs every class's logit") as caught:
        KLDivergence(DIMENSIONS, standardise=True)(random_outputs(4, heads=("logits",)), kept)
    assert "`--encode logits=float16`" in caught.value.hint


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(UsageError, match="temperature"):
        KLDivergence(DIMENSIONS, temperature=temperature)
