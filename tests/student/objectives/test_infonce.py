"""InfoNCE against plain loops: in batch, with a bank, with repeated samples, and its learned temperature."""

import math
from dataclasses import replace

import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.objectives import Batch
from student.objectives.infonce import InfoNCE, repeated_rows, same_class
from tests.contracts.finite_differences import assert_same_loss_and_gradient
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract, random_batch, random_outputs


class TestContract(ObjectiveContract):
    def make_objective(self):
        return InfoNCE(DIMENSIONS)


class TestBankContract(ObjectiveContract):
    def make_objective(self):
        return InfoNCE(DIMENSIONS, negatives=5, temperature=0.2)


class TestMaskedContract(ObjectiveContract):
    def make_objective(self):
        return InfoNCE(DIMENSIONS, mask_same_class=True)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def cross_entropy(scores, own):
    return math.log(sum(math.exp(score) for score in scores)) - own


def by_hand(student, batch, scale, *, symmetric, mask_same_class=False):
    """Over what each side may choose from: its own partner, others that are not the same sample, and the bank."""
    s, t, rows, labels = (
        student.tolist(),
        batch.targets["embedding"].tolist(),
        batch.rows.tolist(),
        batch.labels.tolist(),
    )
    bank = batch.bank["embedding"].tolist() if batch.bank else []
    classes = batch.bank_labels.tolist() if batch.bank else []
    count = len(s)
    forward = backward = 0.0

    def is_alike(label, other):
        return mask_same_class and label == other != NO_LABEL

    for i in range(count):
        own = cosine(s[i], t[i]) * scale
        others = [j for j in range(count) if j != i and rows[j] != rows[i] and not is_alike(labels[i], labels[j])]
        seen = [cosine(s[i], t[j]) * scale for j in others]
        seen += [
            cosine(s[i], row) * scale
            for row, label in zip(bank, classes, strict=True)
            if not is_alike(labels[i], label)
        ]
        forward += cross_entropy([own, *seen], own) / count
        backward += cross_entropy([own, *(cosine(s[j], t[i]) * scale for j in others)], own) / count
    return (forward + backward) / 2 if symmetric else forward


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mask_same_class", [True, False])
@pytest.mark.parametrize("negatives", [0, 6])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [7, 3, 7, 7, 3], [1, 1, 1, 1, 1]])
def test_is_the_mean_cross_entropy_of_finding_the_partner(symmetric, mask_same_class, negatives, rows):
    outputs = random_outputs(5, heads=("embedding",))
    drawn = random_batch(5, targets=("embedding",), bank_rows=negatives)
    batch = Batch(
        inputs={},
        targets=drawn.targets,
        labels=torch.tensor([2, NO_LABEL, 0, 2, NO_LABEL]),
        rows=torch.tensor(rows),
        bank=drawn.bank,
        bank_labels=torch.tensor([0, 0, NO_LABEL, 2, 1, NO_LABEL]) if negatives else None,
    )
    options = {"symmetric": symmetric, "mask_same_class": mask_same_class}
    objective = InfoNCE(DIMENSIONS, negatives=negatives, **options).double()
    with torch.no_grad():
        objective.log_scale.fill_(math.log(2))
    loss = objective(outputs, batch)
    (for_scale,) = torch.autograd.grad(loss, objective.log_scale, retain_graph=True)
    student = outputs["embedding"]
    assert_same_loss_and_gradient(loss, lambda x: by_hand(x, batch, 2.0, **options), student)
    steps = [by_hand(student, batch, 2 * math.exp(change), **options) for change in (1e-5, -1e-5)]
    assert for_scale.item() == pytest.approx((steps[0] - steps[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_unknown_classes_are_the_same_as_no_other():
    mask = same_class(torch.tensor([1, NO_LABEL, 0]), torch.tensor([NO_LABEL, 1, 0, 1]))
    assert mask.tolist() == [[False, True, False, True], [False] * 4, [False, False, True, False]]


def test_repeated_samples_are_masked_but_never_the_partner():
    mask = repeated_rows(torch.tensor([4, 9, 4]))
    assert mask.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_repeated_samples_have_no_gradient_towards_each_other():
    outputs = random_outputs(2, heads=("embedding",))
    batch = random_batch(2, targets=("embedding",))
    same = Batch(inputs={}, targets=batch.targets, labels=batch.labels, rows=torch.tensor([3, 3]))
    InfoNCE(DIMENSIONS).double()(outputs, same).backward()
    assert torch.equal(outputs["embedding"].grad, torch.zeros(2, 6, dtype=torch.float64))


def test_a_bank_that_was_not_asked_for_is_not_read():
    outputs, batch = random_outputs(5, heads=("embedding",)), random_batch(5, targets=("embedding",), bank_rows=6)
    without = Batch(inputs={}, targets=batch.targets, labels=batch.labels, rows=batch.rows)
    objective = InfoNCE(DIMENSIONS)
    assert objective.bank_rows == 0
    assert torch.equal(objective.double()(outputs, batch), objective(outputs, without))


def test_of_a_bank_for_somebody_who_wants_more_only_its_own_share_is_read():
    outputs, batch = random_outputs(5, heads=("embedding",)), random_batch(5, targets=("embedding",), bank_rows=6)
    fewer = replace(batch, bank={"embedding": batch.bank["embedding"][:4]})
    objective = InfoNCE(DIMENSIONS, negatives=4).double()
    assert torch.equal(objective(outputs, batch), objective(outputs, fewer))
    assert not torch.equal(objective(outputs, batch), InfoNCE(DIMENSIONS, negatives=6).double()(outputs, batch))


def test_a_validation_batch_may_come_without_its_bank():
    outputs, batch = random_outputs(5, heads=("embedding",)), random_batch(5, targets=("embedding",))
    plain, banked = InfoNCE(DIMENSIONS).double(), InfoNCE(DIMENSIONS, negatives=6).double()
    assert torch.equal(banked(outputs, batch), plain(outputs, batch))


def test_temperature_is_learned_and_stays_at_least_a_hundredth():
    objective = InfoNCE(DIMENSIONS)
    assert objective.log_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        objective.log_scale.fill_(9.0)
    objective.double()(random_outputs(4, heads=("embedding",)), random_batch(4, targets=("embedding",))).backward()
    assert objective.log_scale.exp().item() == pytest.approx(100)
    assert objective.log_scale.grad != 0, "it can come back from the bound"


@pytest.mark.parametrize("option", [{"negatives": -1}, {"temperature": 0.0}, {"temperature": math.inf}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        InfoNCE(DIMENSIONS, **option)
