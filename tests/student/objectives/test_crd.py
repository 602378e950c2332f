"""CRD against plain loops: both sides, the memories, the constants, the draws, and what validation leaves alone."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.objectives import Batch, Dimensions
from student.objectives import crd as crd_module
from student.objectives.crd import CRD, OtherClasses, remember
from student.objectives.draws import random_bits
from tests.contracts.finite_differences import assert_same_loss_and_gradient
from tests.contracts.objective_contract import (
    DIMENSIONS,
    FEATURES,
    WIDTH,
    ObjectiveContract,
    random_batch,
    random_outputs,
)

LABELS = DIMENSIONS.labels.tolist()


class TestContract(ObjectiveContract):
    def make_objective(self):
        objective = CRD(DIMENSIONS, negatives=5)
        objective.z.fill_(20)  # as after a first batch: z is a constant, which differences would not see
        return objective.eval()


def make(**options):
    torch.manual_seed(0)
    return CRD(DIMENSIONS, **options).double()


def batch_of(rows, seed=0):
    drawn = random_batch(len(rows), targets=("embedding",), seed=seed)
    return Batch(inputs={}, targets=drawn.targets, labels=drawn.labels, rows=torch.tensor(rows))


def drawn_by_hand(seed, step, row, count):
    """From the classes themselves: the sorted rows of other classes, the one that the bits point at."""
    label = LABELS[row]
    by_class = sorted(range(len(LABELS)), key=lambda other: (LABELS[other] == NO_LABEL, LABELS[other], other))
    others = [other for other in by_class if other != row and (label == NO_LABEL or LABELS[other] != label)]
    bits = random_bits(torch.tensor(seed), torch.tensor(step), torch.tensor([row]), count)[0].tolist()
    return [others[number * len(others) // 2**32] for number in bits]


def projected(layer, x):
    out = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return out / np.sqrt((out**2).sum(1, keepdims=True))


def side_by_hand(anchors, positives, bank, rows, negatives, z, temperature=0.07):
    """z is None where this batch sets it; returns the loss and z."""
    ratio = len(negatives[0]) / len(bank)
    own = [math.exp(a @ p / temperature) for a, p in zip(anchors, positives, strict=True)]
    others = [[math.exp(a @ bank[j] / temperature) for j in row] for a, row in zip(anchors, negatives, strict=True)]
    if z is None:
        z = np.mean([value for o, row in zip(own, others, strict=True) for value in [o, *row]]) * len(bank)
    loss = 0.0
    for a, row in zip(own, others, strict=True):
        loss -= math.log((a / z) / (a / z + ratio))
        loss -= sum(math.log(1 - (value / z) / (value / z + ratio)) for value in row)
    return loss / len(rows), z


def by_hand(objective, features, batch, *, step, z):
    rows, k = batch.rows.tolist(), objective.negatives
    u = projected(objective.student_projector, features)
    v = projected(objective.teacher_projector, batch.targets["embedding"].numpy())
    s_bank, t_bank = objective.student_bank.numpy(), objective.teacher_bank.numpy()
    negatives = [drawn_by_hand(int(objective.seed), step, row, k) for row in rows]
    trains = step > 0
    s, z_s = side_by_hand(u, t_bank[rows] if trains else v, t_bank, rows, negatives, z[0])
    t, z_t = side_by_hand(v, s_bank[rows] if trains else u, s_bank, rows, negatives, z[1])
    return s, t, (z_s, z_t)


@pytest.mark.parametrize("rows", [[3, 0, 7, 2], [2, 2, 5, 11]])
@pytest.mark.parametrize("most_dense", [32, 0])
def test_value_and_gradient_are_those_of_the_formula(rows, most_dense, monkeypatch):
    monkeypatch.setattr(crd_module, "_DENSE", most_dense)
    outputs, batch = random_outputs(4, heads=()), batch_of(rows)
    objective = make(negatives=6)
    before = copy.deepcopy(objective)
    loss = objective(outputs, batch)
    _, _, z = by_hand(before, outputs["features"].detach().numpy(), batch, step=1, z=(None, None))
    np.testing.assert_allclose(objective.z, z, rtol=1e-12)

    def both(features):  # z is a constant to the gradient
        s, t, _ = by_hand(before, features, batch, step=1, z=z)
        return s + t

    assert_same_loss_and_gradient(loss, both, outputs["features"])


def test_the_teachers_projector_learns_from_its_own_side():
    outputs, batch = random_outputs(4, heads=()), batch_of([3, 0, 7, 2])
    objective = make(negatives=6)
    before = copy.deepcopy(objective)
    bias = objective.teacher_projector.bias
    (gradient,) = torch.autograd.grad(objective(outputs, batch), bias)
    features = outputs["features"].detach().numpy()
    _, _, z = by_hand(before, features, batch, step=1, z=(None, None))
    for place in (0, 77):
        losses = []
        for change in (1e-5, -1e-5):
            moved = copy.deepcopy(before)
            moved.teacher_projector.bias.data[place] += change
            losses.append(by_hand(moved, features, batch, step=1, z=z)[1])
        assert gradient[place].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-7)


def test_memories_and_constants_are_followed_over_several_steps():
    objective, twin = make(negatives=6, momentum=0.3), make(negatives=6, momentum=0.3)
    z = (None, None)
    for step, rows in enumerate([[3, 0, 7, 2], [0, 7, 9, 7], [3, 4, 0, 1]], 1):
        outputs, batch = random_outputs(4, heads=(), seed=step), batch_of(rows, seed=step)
        features = outputs["features"].detach().numpy()
        s, t, z = by_hand(twin, features, batch, step=step, z=z)
        assert objective(outputs, batch).item() == pytest.approx(s + t, rel=1e-12)
        sides = {
            "student": projected(twin.student_projector, features),
            "teacher": projected(twin.teacher_projector, batch.targets["embedding"].numpy()),
        }
        for side, vectors in sides.items():
            bank = twin.get_buffer(f"{side}_bank").numpy()
            for row in set(rows):
                new = np.mean([vector for vector, other in zip(vectors, rows, strict=True) if other == row], axis=0)
                moved = 0.3 * bank[row] + 0.7 * new
                bank[row] = moved / np.linalg.norm(moved)
            np.testing.assert_allclose(objective.get_buffer(f"{side}_bank"), bank, rtol=1e-12)
    np.testing.assert_allclose(objective.z, z, rtol=1e-12)
    assert objective.step == 3


@pytest.mark.parametrize("count", [1, 2, 9])
def test_training_is_finite_in_float32(count):
    objective = make().float()
    outputs = {"features": torch.randn(count, FEATURES, requires_grad=True)}
    targets = {"embedding": torch.randn(count, WIDTH)}
    for _ in range(3):
        batch = Batch(inputs={}, targets=targets, labels=torch.zeros(count).long(), rows=torch.arange(count))
        loss = objective(outputs, batch)
        loss.backward()
        assert loss.shape == () and loss.isfinite() and outputs["features"].grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in objective.buffers())


def test_a_validation_pass_changes_nothing_and_draws_nothing():
    objective = make(negatives=6)
    objective(random_outputs(4, heads=()), batch_of([3, 0, 7, 2]))
    before, state = copy.deepcopy(objective), torch.get_rng_state()
    outputs, batch = random_outputs(4, heads=(), seed=5), batch_of([8, 0, 6, 5], seed=5)
    objective.eval()
    with torch.inference_mode():
        losses = [objective(outputs, batch) for _ in range(2)]
    s, t, _ = by_hand(before, outputs["features"].detach().numpy(), batch, step=0, z=tuple(before.z.tolist()))
    assert losses[0].item() == pytest.approx(s + t, rel=1e-12) and torch.equal(*losses)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(objective.buffers(), before.buffers(), strict=True))


def test_validation_before_training_does_not_set_the_constants():
    objective = make(negatives=6).eval()
    assert objective(random_outputs(4, heads=()), batch_of([3, 0, 7, 2])).isfinite()
    assert torch.equal(objective.z, torch.zeros(2, dtype=torch.float64)) and objective.step == 0


def test_training_takes_no_global_random_number():
    objective, state = make(negatives=6), torch.get_rng_state()
    objective(random_outputs(4, heads=()), batch_of([3, 0, 7, 2]))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_goes_on_from_its_saved_state_to_the_last_bit():
    objective, other = make(negatives=6), CRD(DIMENSIONS, negatives=6).double()
    outputs, batch = random_outputs(4, heads=()), batch_of([3, 0, 7, 2])
    objective(outputs, batch)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(objective(outputs, batch), other(outputs, batch))
    assert torch.equal(objective.teacher_bank, other.teacher_bank)


def test_draws_differ_from_step_to_step_and_from_run_to_run():
    outputs, batch = random_outputs(4, heads=()), batch_of([3, 0, 7, 2])
    objective = make(negatives=6, momentum=0.99)
    bank = objective.student_bank.clone(), objective.teacher_bank.clone()
    first = objective(outputs, batch)
    objective.student_bank.copy_(bank[0])
    objective.teacher_bank.copy_(bank[1])
    assert not torch.isclose(objective(outputs, batch), first)
    torch.manual_seed(1)
    assert CRD(DIMENSIONS).seed != objective.seed


def test_order_of_a_training_batch_does_not_matter():
    losses, banks = [], []
    outputs, batch = random_outputs(5, heads=()), batch_of([3, 3, 7, 2, 0])
    for order in (torch.arange(5), torch.tensor([4, 1, 3, 0, 2])):
        objective = make(negatives=6)
        shuffled = Batch(
            inputs={},
            targets={"embedding": batch.targets["embedding"][order]},
            labels=batch.labels[order],
            rows=batch.rows[order],
        )
        losses.append(objective({"features": outputs["features"][order]}, shuffled))
        banks.append(objective.teacher_bank)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*banks)


def test_negatives_are_of_other_classes_and_all_of_them_equally_often():
    others = OtherClasses(DIMENSIONS.labels)
    rows = torch.arange(len(LABELS))
    drawn = others(rows, random_bits(torch.tensor(1), torch.tensor(2), rows, 20_000))
    for row, label in enumerate(LABELS):
        allowed = [r for r in range(len(LABELS)) if r != row and (label == NO_LABEL or LABELS[r] != label)]
        counts = np.bincount(drawn[row], minlength=len(LABELS))
        assert set(np.flatnonzero(counts)) == set(allowed)
        expected = 20_000 / len(allowed)
        assert np.abs(counts[allowed] - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("label", [NO_LABEL, 4])
def test_where_classes_tell_nothing_negatives_are_all_other_rows(label):
    rows = torch.arange(5)
    drawn = OtherClasses(torch.full((5,), label))(rows, random_bits(torch.tensor(1), torch.tensor(2), rows, 200))
    assert [set(line) for line in drawn.tolist()] == [{0, 1, 2, 3, 4} - {row} for row in range(5)]


def test_the_largest_and_smallest_draws_stay_inside():
    others = OtherClasses(DIMENSIONS.labels)
    rows = torch.arange(len(LABELS))
    ends = others(rows, torch.tensor([[0, 2**32 - 1]]).expand(len(LABELS), 2))
    assert all(a != row and b != row for row, (a, b) in enumerate(ends.tolist()))


def test_a_row_that_stands_twice_is_remembered_once_to_the_last_bit():
    bank = torch.randn(6, 128)
    vectors = torch.randn(40, 128)
    rows = torch.tensor([1, 4] * 20)
    expected = 0.5 * bank[4].double() + 0.5 * vectors[1::2].double().mean(0)
    untouched = bank[[0, 2, 3, 5]].clone()
    remember(bank, rows, vectors, momentum=0.5)
    torch.testing.assert_close(bank[4].double(), expected / expected.norm(), rtol=1e-5, atol=1e-6)
    assert torch.equal(bank[[0, 2, 3, 5]], untouched)


def test_defaults_are_the_papers_and_no_more_negatives_than_other_rows():
    objective = CRD(Dimensions(features=4, targets={"embedding": 3}, labels=torch.zeros(20_000).long()))
    assert (objective.negatives, objective.temperature, objective.momentum) == (16384, 0.07, 0.5)
    assert objective.student_bank.shape == objective.teacher_bank.shape == (20_000, 128)
    bound = 1 / math.sqrt(128 / 3)
    assert objective.student_bank.abs().max().item() == pytest.approx(bound, rel=1e-4)
    assert objective.student_bank.norm(dim=1).mean().item() == pytest.approx(1, abs=0.01)
    assert CRD(DIMENSIONS).negatives == len(LABELS) - 1


@pytest.mark.parametrize("option", [{"negatives": 0}, {"temperature": 0.0}, {"momentum": 1.0}])
def test_impossible_options_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        CRD(DIMENSIONS, **option)


@pytest.mark.parametrize("labels", [None, torch.zeros(1).long()])
def test_a_cache_without_other_rows_is_refused(labels):
    with pytest.raises(UsageError, match="there are none"):
        CRD(dataclasses.replace(DIMENSIONS, labels=labels))
