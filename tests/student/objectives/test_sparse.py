"""Sparse logits as targets: each rule for the rest by plain loops, which of them are biased, and sampled ones."""

import math

import pytest
import torch

from featurecache.encodings import make_encoding
from featurecache.errors import UsageError
from featurecache.types import NO_LABEL, OutputSpec, SampledLogits, TopLogits
from student.objectives.base import Batch, Dimensions, Mix
from student.objectives.kl import KLDivergence, kl_divergence
from student.objectives.sparse import sparse_kl_divergence
from tests.contracts.objective_contract import CLASSES, DIMENSIONS, random_batch, random_outputs

ROWS, SIZE = 5, 9
LABELS = torch.tensor([0, 8, NO_LABEL, 3, 4])


def top(logits, k, temperatures=(1.0, 4.0)):
    values, indices = logits.topk(k, dim=1)
    sums = torch.stack([(logits / temperature).logsumexp(dim=1) for temperature in temperatures], dim=1)
    return TopLogits(values, indices, sums, temperatures=temperatures, size=logits.shape[1])


def softmax(row, temperature):
    weights = [math.exp(z / temperature) for z in row]
    return [weight / sum(weights) for weight in weights]


def target_by_hand(row, k, temperature, rest, label):
    """Plain lists: the probabilities that a rule makes of a teacher's row; None for the bucket."""
    kept = sorted(range(len(row)), key=lambda index: -row[index])[:k]
    p = [chance if index in kept else 0 for index, chance in enumerate(softmax(row, temperature))]
    r = 1 - sum(p)
    if rest == "uniform":
        return [p[index] if index in kept else r / (len(row) - k) for index in range(len(row))]
    if rest == "renormalise":
        return [chance / (1 - r) for chance in p]
    if rest == "label" and label != NO_LABEL:
        return [chance + r * (index == label) for index, chance in enumerate(p)]
    return None


def by_hand(student, teacher, k, temperature, rest):
    """The loss and its gradient in the logits, T * (p - q) / rows; the bucket's from its own formula."""
    total, gradient = 0.0, []
    for s, t, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        p, q = softmax(s, temperature), target_by_hand(t, k, temperature, rest, label)
        if q is None:
            kept = sorted(range(SIZE), key=lambda index: -t[index])[:k]
            exact = softmax(t, temperature)
            r, s_rest = 1 - sum(exact[i] for i in kept), sum(p[i] for i in range(SIZE) if i not in kept)
            total += sum(exact[i] * math.log(exact[i] / p[i]) for i in kept) + r * math.log(r / s_rest)
            q = [exact[i] if i in kept else r * p[i] / s_rest for i in range(SIZE)]
        else:
            total += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)
        gradient.append([temperature * (a - b) / ROWS for a, b in zip(p, q, strict=True)])
    return temperature**2 * total / ROWS, torch.tensor(gradient, dtype=torch.float64)


@pytest.fixture
def student():
    return torch.randn(ROWS, SIZE, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def teacher():
    return 2 * torch.randn(ROWS, SIZE, dtype=torch.float64)


@pytest.mark.parametrize("rest", ["bucket", "uniform", "label", "renormalise"])
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (3, 4.0), (8, 1.0)])
def test_every_rule_and_its_gradient_by_plain_loops(student, teacher, k, temperature, rest):
    loss = sparse_kl_divergence(student, top(teacher, k), temperature=temperature, rest=rest, labels=LABELS)
    loss.backward()
    value, gradient = by_hand(student, teacher, k, temperature, rest)
    assert loss.item() == pytest.approx(value, rel=1e-10)
    torch.testing.assert_close(student.grad, gradient)


@pytest.mark.parametrize("rest", ["bucket", "uniform", "label", "renormalise"])
def test_with_all_classes_stored_every_rule_is_the_dense_one(student, teacher, rest):
    loss = sparse_kl_divergence(student, top(teacher, SIZE), temperature=4.0, rest=rest, labels=LABELS)
    dense = kl_divergence(student, teacher, temperature=4.0)
    torch.testing.assert_close(loss, dense)
    torch.testing.assert_close(*(torch.autograd.grad(each, student)[0] for each in (loss, dense)))


@pytest.mark.parametrize("rest", ["bucket", "uniform", "label", "renormalise"])
def test_a_sure_teacher_in_float32_is_finite_under_every_rule(rest):
    teacher = torch.tensor([[200.0, 0.0, 0.0]])
    student = torch.tensor([[-50.0, 60.0, 0.0]], requires_grad=True)
    loss = sparse_kl_divergence(student, top(teacher, 1), rest=rest, labels=torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(110) and student.grad.isfinite().all()


def test_a_mixed_row_gives_the_rest_to_both_labels_by_their_shares(student, teacher):
    share, others = torch.tensor([0.25, 1, 0.5, 0.5, 1]), torch.tensor([2, NO_LABEL, 1, NO_LABEL, 6])
    targets = top(teacher, 2)
    bucket = [sparse_kl_divergence(*row) for row in zip(student[:, None], each(targets), strict=True)]
    mixed = sparse_kl_divergence(student, targets, rest="label", labels=LABELS, mix=Mix(others, share))
    expected = 0.0
    for row in range(ROWS):
        label, partner, part = int(LABELS[row]), int(others[row]), float(share[row])
        if label == NO_LABEL or (partner == NO_LABEL and part < 1):
            expected += bucket[row].item()
            continue
        exact = softmax(teacher[row].tolist(), 1.0)
        kept = set(targets.indices[row].tolist())
        q = [chance if index in kept else 0.0 for index, chance in enumerate(exact)]
        rest = 1 - sum(q)
        q[label] += part * rest
        q[partner] += (1 - part) * rest
        p = softmax(student[row].tolist(), 1.0)
        expected += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)
    assert mixed.item() == pytest.approx(expected / ROWS, rel=1e-10)


def each(targets):
    return [targets.map(lambda item, row=row: item[row : row + 1]) for row in range(ROWS)]


def test_renormalising_is_biased_and_the_bucket_is_not(teacher):
    """At the teacher's own logits the gradient is (p - t / sum(t)) / rows, and 0; and more certainty lowers it."""
    targets, same = top(teacher, 3), teacher.clone().requires_grad_()
    biased, bucket = (sparse_kl_divergence(same, targets, rest=rest) for rest in ("renormalise", "bucket"))
    (gradient,) = torch.autograd.grad(biased, same)
    p = teacher.softmax(dim=1)
    kept = torch.zeros_like(p).scatter(1, targets.indices, 1.0) * p
    torch.testing.assert_close(gradient, (p - kept / kept.sum(dim=1, keepdim=True)) / ROWS)
    assert gradient.abs().max() > 0.01
    torch.testing.assert_close(torch.autograd.grad(bucket, same)[0], torch.zeros_like(p))
    surer = teacher + 5 * (kept > 0)
    assert sparse_kl_divergence(surer, targets, rest="renormalise") < biased / 10
    assert sparse_kl_divergence(surer, targets, rest="bucket") > bucket + 0.01


def sampled(logits, spec):
    encoding = make_encoding(spec, OutputSpec("logits", (logits.shape[1],)))
    return encoding.decode(encoding.encode(logits))


@pytest.mark.parametrize("spec", ["sampled:6@2", "topk:2+sampled:6@2"])
def test_sampled_is_cross_entropy_less_the_exact_entropy(student, teacher, spec):
    targets = sampled(teacher, spec)
    loss = sparse_kl_divergence(student, targets, temperature=2.0)
    loss.backward()
    total = 0.0
    weights = torch.zeros(ROWS, SIZE, dtype=torch.float64)
    for row in range(ROWS):
        p, q = softmax(student[row].tolist(), 2.0), softmax(teacher[row].tolist(), 2.0)
        for index, weight in zip(targets.indices[row].tolist(), targets.weights[row].tolist(), strict=True):
            weights[row, index] += weight
            total -= weight * math.log(p[index])
        total += sum(chance * math.log(chance) for chance in q)
    assert loss.item() == pytest.approx(4 * total / ROWS, rel=1e-3 if "topk" in spec else 1e-5)
    p = (student.detach() / 2).softmax(dim=1)
    torch.testing.assert_close(student.grad, 2 * (p * weights.sum(dim=1, keepdim=True) - weights) / ROWS)
    assert torch.autograd.gradcheck(lambda logits: sparse_kl_divergence(logits, targets, temperature=2.0), student)


@pytest.mark.parametrize("spec", ["sampled:6@1", "topk:2+sampled:6@1"])
def test_sampled_value_and_gradient_are_unbiased(spec):
    """In 3,000 rows of equal probabilities: their means are those of the dense KL, and at the teacher itself 0."""
    base, other = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.5]), torch.tensor([0.0, 1.5, 0.25, 1.0, 0.0, -2.0])
    rows = base + torch.arange(3000.0)[:, None] / 2**9  # other logits, so other draws, of the same probabilities
    targets = sampled(rows, spec)
    for logits in (other.double(), base.double()):
        student = logits.expand(3000, -1).clone().requires_grad_()
        losses = [sparse_kl_divergence(student[a : a + 100], part) for a, part in batches(targets, 100)]
        (gradient,) = torch.autograd.grad(sum(losses), student)
        exact = base.double().softmax(0)
        dense = (exact * (exact.log() - logits.log_softmax(0))).sum()
        values = torch.stack(losses).detach()
        assert abs(values.mean() - dense) < 3.5 * values.std() / math.sqrt(30) + 1e-4
        gradient = 100 * gradient  # of a row alone
        spread = 3.5 * gradient.std(0) / math.sqrt(3000) + 2e-4  # float16 of those that are exact
        assert ((gradient.mean(0) - (logits.softmax(0) - exact)).abs() < spread).all()


def batches(targets, count):
    for start in range(0, len(targets.indices), count):
        yield start, targets.map(lambda item, start=start: item[start : start + count])


def test_sampled_gradients_point_where_the_dense_one_does_and_top_k_does_not():
    """A long tail: as many places stored, the mean gradient over rows that differ by noise alone."""
    draw = torch.Generator().manual_seed(5)
    teacher = (torch.linspace(2, -2, 200) + torch.zeros(400, 1)) + 1e-3 * torch.randn(400, 200, generator=draw)
    student = (0.5 * torch.randn(200, generator=draw)).expand(400, -1).clone().requires_grad_()
    exact = torch.autograd.grad(kl_divergence(student, teacher), student)[0].mean(0)

    def cosine(targets, **rule):
        gradient = torch.autograd.grad(sparse_kl_divergence(student, targets, **rule), student)[0].mean(0)
        return float(torch.cosine_similarity(gradient, exact, dim=0))

    draws, mixed = cosine(sampled(teacher, "sampled:12@1")), cosine(sampled(teacher, "topk:6+sampled:6@1"))
    kept = {rest: cosine(top(teacher, 12, (1.0,)), rest=rest) for rest in ("bucket", "uniform", "renormalise")}
    assert draws > 0.97 and mixed > 0.95
    assert max(kept.values()) < 0.9 and kept["renormalise"] < kept["bucket"]


def test_a_temperature_that_was_not_sampled_at_is_refused(student, teacher):
    with pytest.raises(UsageError) as caught:
        sparse_kl_divergence(student, sampled(teacher, "sampled:3@2"), temperature=1.0)
    assert caught.value.message == "kl: the cache's logits were sampled at temperature 2, not 1"
    assert "use kl(temperature=2)" in caught.value.hint and "`--encode logits=sampled:N@1`" in caught.value.hint


def test_the_objective_uses_its_rule_the_labels_and_the_mix():
    outputs, batch = random_outputs(6, heads=("logits",)), random_batch(6, targets=("logits",))
    teacher = top(batch.targets["logits"], 2)
    mix = Mix(batch.labels.roll(1), torch.tensor([0.3, 1, 1, 0.5, 1, 1]))
    sparse = Batch(inputs={}, targets={"logits": teacher}, labels=batch.labels, rows=batch.rows, mix=mix)
    for rest in ("bucket", "uniform", "label", "renormalise"):
        objective = KLDivergence(DIMENSIONS, temperature=4.0, rest=rest)
        expected = sparse_kl_divergence(
            outputs["logits"], teacher, temperature=4.0, rest=rest, labels=batch.labels, mix=mix
        )
        assert objective(outputs, sparse) == expected
    found = sampled(batch.targets["logits"], "sampled:4@4")
    drawn = Batch(inputs={}, targets={"logits": found}, labels=batch.labels, rows=batch.rows)
    expected = sparse_kl_divergence(outputs["logits"], found, temperature=4.0)
    assert KLDivergence(DIMENSIONS)(outputs, drawn) == expected


def test_rules_by_label_need_labels_of_the_teachers_classes():
    apart = Dimensions(features=3, targets={"logits": CLASSES}, labels_are_logits=False)
    with pytest.raises(UsageError, match=r"kl\(rest=label\) needs each label's own logit") as caught:
        KLDivergence(apart, rest="label")
    assert "--class-map" in caught.value.hint
    none = Dimensions(features=3, targets={"logits": CLASSES}, labels=torch.full((4,), NO_LABEL))
    with pytest.raises(UsageError, match=r"kl\(rest=label\) needs labels"):
        KLDivergence(none, rest="label")
    assert KLDivergence(none, rest="uniform").notes == ()


def test_sampled_logits_move_and_change_as_one():
    found = sampled(torch.randn(4, 6), "sampled:3@1")
    rows = found.map(lambda item: item[1:3])
    assert isinstance(rows, SampledLogits) and (rows.size, rows.temperature) == (6, 1.0)
    assert torch.equal(rows.indices, found.indices[1:3]) and torch.equal(rows.entropy, found.entropy[1:3])
    assert torch.equal(found.to("cpu").weights, found.weights)
