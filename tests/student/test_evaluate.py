"""Scores against numbers worked out by hand, and features judged against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL, SampledLogits, TopLogits
from student.evaluate import Features, compare, feature_scores, run_student, top_class
from student.linear_probe import fit_linear_probe
from student.models import Student
from student.selection import validation_rows
from tests.student.small_student import BagOfBytes, make_data

STUDENT = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 5.0], [4.0, 0.0, 0.0]])
TEACHER = np.array([[3.0, 0.0, 1.0], [2.0, 1.0, 0.0], [0.0, 1.0, 4.0], [0.0, 2.0, 1.0]])


def softmax(logits):
    exp = np.exp(logits)
    return exp / exp.sum(1, keepdims=True)


def tensors(**values):
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def test_scores_of_dense_logits_by_hand():
    labels = np.array([0, 1, 2, NO_LABEL])
    scores = compare(tensors(logits=STUDENT), tensors(logits=TEACHER), labels, np.arange(3))
    p, q = softmax(TEACHER), softmax(STUDENT)
    assert scores == {
        "accuracy": pytest.approx(3 / 3),
        "teacher_accuracy": pytest.approx(2 / 3),
        "agreement": pytest.approx(2 / 4),
        "kl": pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5),
        "cosine": None,
    }


def test_classes_of_the_data_are_looked_up_among_the_teachers():
    # the data know two classes, numbers 0 and 1: the teacher's logits 2 and 0; its logit 1 is nobody's
    labels = np.array([1, 1, 0, 0])
    scores = compare(tensors(logits=STUDENT), tensors(logits=TEACHER), labels, np.array([2, 0]))
    student_choice = [0, 2, 2, 0]
    teacher_choice = [0, 0, 2, 2]
    wanted = [0, 0, 2, 2]
    assert scores["accuracy"] == np.mean(np.equal(student_choice, wanted)) == 0.5
    assert scores["teacher_accuracy"] == np.mean(np.equal(teacher_choice, wanted)) == 1.0
    assert scores["agreement"] == 0.5  # over all classes


def test_classes_that_do_not_correspond_are_never_scored():
    scores = compare(tensors(logits=STUDENT), tensors(logits=TEACHER), np.array([0, 1, 2, 0]), None)
    assert scores["accuracy"] is None and scores["teacher_accuracy"] is None and scores["agreement"] == 0.5


def test_a_head_of_labels_is_in_the_datas_own_classes():
    labels = np.array([1, 0, NO_LABEL, 0])
    own = np.array([[0.0, 1.0], [3.0, 2.0], [0.0, 1.0], [0.0, 1.0]])
    scores = compare(tensors(labels=own, logits=STUDENT), tensors(logits=TEACHER), labels, None)
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_without_labels_or_outputs_there_is_nothing_to_say():
    none = np.full(4, NO_LABEL)
    assert compare(tensors(), tensors(), none, None) == dict.fromkeys(
        ("accuracy", "teacher_accuracy", "agreement", "kl", "cosine")
    )


def test_cosine_is_the_mean_over_rows():
    scores = compare(tensors(embedding=STUDENT), tensors(embedding=TEACHER), np.full(4, NO_LABEL), None)
    norms = np.linalg.norm(STUDENT, axis=1) * np.linalg.norm(TEACHER, axis=1)
    assert scores["cosine"] == pytest.approx(((STUDENT * TEACHER).sum(1) / norms).mean())


def sparse(logits, k, temperatures=(1.0, 2.0)):
    order = np.argsort(-logits, axis=1)[:, :k]
    sums = [np.log(np.exp(logits / t).sum(1)) for t in temperatures]
    return TopLogits(
        values=torch.tensor(np.take_along_axis(logits, order, 1), dtype=torch.float32),
        indices=torch.tensor(order),
        logsumexp=torch.tensor(np.stack(sums, 1), dtype=torch.float32),
        temperatures=temperatures,
        size=logits.shape[1],
    )


def test_scores_of_sparse_logits_by_hand():
    labels = np.array([0, 1, 2, 1])
    scores = compare(tensors(logits=STUDENT), {"logits": sparse(TEACHER, 2)}, labels, np.arange(3))
    p, q = softmax(TEACHER), softmax(STUDENT)
    stored = np.argsort(-TEACHER, axis=1)[:, :2]
    kept_p, kept_q = np.take_along_axis(p, stored, 1), np.take_along_axis(q, stored, 1)
    rest_p, rest_q = 1 - kept_p.sum(1), 1 - kept_q.sum(1)
    by_hand = (kept_p * np.log(kept_p / kept_q)).sum(1) + rest_p * np.log(rest_p / rest_q)
    assert scores["kl"] == pytest.approx(by_hand.mean(), rel=1e-4)
    assert (scores["accuracy"], scores["teacher_accuracy"], scores["agreement"]) == (0.75, 0.75, 0.5)
    no_logsumexp = compare(tensors(logits=STUDENT), {"logits": sparse(TEACHER, 2, (4.0,))}, labels, np.arange(3))
    assert no_logsumexp["kl"] is None and no_logsumexp["agreement"] == 0.5


def test_top_class_among_a_few():
    logits, few = torch.tensor(TEACHER), np.array([1, 2])
    assert top_class(logits).tolist() == [0, 0, 2, 1]
    assert top_class(logits, few).tolist() == [2, 1, 2, 1]
    assert top_class(sparse(TEACHER, 3), few).tolist() == [2, 1, 2, 1]
    assert top_class(sparse(TEACHER, 1), few).tolist() == [0, 0, 2, 1]  # none of them is stored


def test_scores_of_sampled_logits():
    """The class that is drawn most, and of several rows the mean of what is an unbiased estimate for each."""
    labels, p = np.array([0, 1, 2, 1]), softmax(TEACHER)
    drawn = SampledLogits(
        indices=torch.tensor([[0, 1], [0, 0], [2, 1], [1, 0]]),
        weights=torch.tensor([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]),
        entropy=torch.tensor(-(p * np.log(p)).sum(1)),
        temperature=1.0,
        size=3,
    )
    scores = compare(tensors(logits=STUDENT), {"logits": drawn}, labels, np.arange(3))
    logs, estimates = np.log(softmax(STUDENT)), [[0.75, 0.25, 0], [1, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]]
    expected = -(np.array(estimates) * logs).sum(1) + (p * np.log(p)).sum(1)
    assert scores["kl"] == pytest.approx(expected.mean(), rel=1e-5)
    assert scores["teacher_accuracy"] == 0.75
    assert top_class(drawn, np.array([1, 2])).tolist() == [1, 0, 2, 1]  # the second row has no drawn class among them
    warmer = compare(tensors(logits=STUDENT), {"logits": replace(drawn, temperature=2.0)}, labels, np.arange(3))
    assert warmer["kl"] is None and warmer["agreement"] == scores["agreement"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("cache"))


def test_a_student_is_run_over_every_row_in_order(data):
    student = Student(BagOfBytes(dropout=0.5), {"embedding": 6}).train()
    found = run_student(student, data, batch_size=10)
    assert sorted(found) == ["embedding", "features"] and found["features"].shape == (64, 12)
    assert not student.training and not found["features"].requires_grad
    for row in (0, 17, 63):
        text = data.source[int(data.samples[row])].encoded.decode()
        alone = student(student.backbone.input.collate([student.backbone.input.prepare(text)]))
        torch.testing.assert_close(found["embedding"][row], alone["embedding"][0], rtol=1e-4, atol=1e-5)


def test_a_shared_head_is_judged_in_the_teachers_classes(data):
    student = Student(BagOfBytes(), {"logits": 5}, shared={"labels": "logits"})
    found = run_student(student, data)
    assert sorted(found) == ["features", "logits"]
    classes = np.array([4, 2, 0])
    student.heads["logits"].weight.data.zero_()
    student.heads["logits"].bias.data = torch.tensor([0.0, 9.0, 0.0, 9.0, 1.0])  # the data's class 0, if any of its own
    scores = compare(run_student(student, data), {}, data.labels, classes)
    assert scores["accuracy"] == np.mean(data.labels == 0)


def blobs(count, seed, *, classes=4, dim=8, spread=1.6):
    centres = np.random.default_rng(0).normal(size=(classes, dim)) * spread
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    scale = np.linspace(0.2, 30, dim)  # features of very different sizes
    return Features(
        torch.tensor((centres[labels] + rng.normal(size=(count, dim))) * scale, dtype=torch.float32), labels
    )


def accuracy_of(model, bank, queries):
    return model.fit(bank.vectors.numpy(), bank.labels).score(queries.vectors.numpy(), queries.labels)


def test_nearest_neighbours_are_those_of_scikit_learn():
    bank, queries = blobs(600, 1), blobs(1500, 2)
    scores = feature_scores(bank, queries, np.arange(600) % 5 == 0, classes=4)
    nearest = KNeighborsClassifier(10, metric="cosine").fit(bank.vectors.numpy(), bank.labels)
    expected = nearest.score(queries.vectors.numpy(), queries.labels)
    assert scores["neighbours"] == pytest.approx(expected, abs=0.01)  # they break ties in different ways


def test_neighbours_by_hand_in_a_small_bank():
    bank = Features(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), np.array([0, 1, 1, 0]))
    queries = Features(torch.tensor([[5.0, 0.0], [0.0, 3.0]]), np.array([0, 1]))
    # two votes each: the class of the nearer rows wins, which is the nearest one's here
    assert feature_scores(bank, queries, np.array([False, True, False, True]), classes=2)["neighbours"] == 1.0


def test_a_linear_probe_is_as_good_as_logistic_regression():
    bank, queries = blobs(2000, 1), blobs(2000, 2)
    held_out = validation_rows([str(row) for row in range(2000)], 0.2)
    probe = fit_linear_probe(bank.vectors, bank.labels, held_out, classes=4)
    found = float((probe(queries.vectors).argmax(1).numpy() == queries.labels).mean())
    scaler = StandardScaler().fit(bank.vectors.numpy())
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(bank.vectors.numpy()), bank.labels)
    expected = model.score(scaler.transform(queries.vectors.numpy()), queries.labels)
    assert expected > 0.8 and found == pytest.approx(expected, abs=0.015)
    assert probe.validation_accuracy == pytest.approx(expected, abs=0.06)
    assert feature_scores(bank, queries, held_out, classes=4)["linear"] == found


def test_a_probe_is_the_linear_map_that_it_says():
    bank = blobs(200, 3)
    probe = fit_linear_probe(bank.vectors, bank.labels, np.arange(200) % 4 == 0, classes=4)
    assert probe.weight.shape == (4, 8) and probe.bias.shape == (4,) and probe.steps % 10 == 0
    torch.testing.assert_close(probe(bank.vectors), bank.vectors @ probe.weight.T + probe.bias, rtol=1e-4, atol=1e-4)
    again = fit_linear_probe(bank.vectors, bank.labels, np.arange(200) % 4 == 0, classes=4)
    assert torch.equal(again.weight, probe.weight)


@pytest.mark.parametrize("held_out", [np.zeros(200, bool), np.ones(200, bool)])
def test_a_probe_without_validation_or_training_labels_is_refused(held_out):
    bank = blobs(200, 3)
    with pytest.raises(UsageError, match="labels to fit on and to validate on"):
        fit_linear_probe(bank.vectors, bank.labels, held_out, classes=4)


def test_a_dimension_that_is_constant_has_no_weight():
    torch.manual_seed(0)
    vectors, labels = torch.randn(200, 6), np.arange(200) % 4
    vectors[np.arange(200), labels] += 3
    vectors[:, 5] = 0.25  # as some encoders have one that is dead
    probe = fit_linear_probe(vectors, labels, np.arange(200) % 5 == 0, classes=4)
    assert (probe.weight[:, 5] == 0).all() and probe.weight.abs().max() < 5
    moved = vectors.clone()
    moved[:, 5] = 1
    assert torch.equal(probe(moved), probe(vectors))
