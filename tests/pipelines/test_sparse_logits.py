"""Sparse logits from extraction to a trained student's scores, and what is refused or told before training."""

import numpy as np
import pytest

from featurecache.errors import UsageError
from featurecache.store.reader import open_cache
from featurecache.types import SampledLogits
from pipelines import describe_cache, evaluate_run, extract_cache, finish, fit_probe, train_student
from pipelines.answers import ask
from pipelines.events import Message

FAST = {"student": "bert:1x16", "max_length": 16, "batch_size": 16, "workers": 0, "device": "cpu", "steps": 3}
TEACHER = {"teacher": "random", "data": "synthetic-text:80", "workers": 0, "device": "cpu"}
CLASSES = {"model_kwargs": {"dim": 8, "classes": 6}}


@pytest.fixture(scope="module", params=["sampled:20@1", "topk:2+sampled:20@1"])
def drawn(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn") / "cache"
    finish(extract_cache(out=path, encode={"logits": request.param}, **CLASSES, **TEACHER))
    return path, request.param


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "cache"
    finish(extract_cache(out=path, encode={"logits": "float32"}, **CLASSES, **TEACHER))
    return path


def test_what_is_read_is_an_estimate_of_the_teachers_probabilities(drawn, dense):
    path, spec = drawn
    reader = open_cache(path).split("train")
    found = reader.read(np.arange(80), outputs=["logits"])["logits"]
    assert isinstance(found, SampledLogits) and (found.size, found.temperature) == (6, 1.0)
    exact = open_cache(dense).split("train").read(np.arange(80), outputs=["logits"])["logits"].softmax(dim=1)
    estimate = exact.new_zeros(80, 6).scatter_add(1, found.indices, found.weights)
    spread = (exact * (1 - exact) / 20).sum(0).sqrt() / 80**0.5
    assert ((estimate - exact).mean(0).abs() < 4 * spread).all()
    gathered = next(iter(reader.gather([np.arange(80)], outputs=["logits"])))["logits"]
    assert (gathered.weights == found.weights).all() and (gathered.indices == found.indices).all()
    described = describe_cache(path)["splits"]["train"]["random-text"]
    assert spec in str(described) and "mean distance" in str(described)


def test_a_student_learns_from_them_and_is_scored(drawn, tmp_path):
    path, _ = drawn
    finish(train_student(cache=path, out=tmp_path / "run", objective="kl(temperature=1),cosine", **FAST))
    scores = finish(evaluate_run(run=tmp_path / "run", workers=0, device="cpu"))
    assert np.isfinite(scores["kl"]) and 0 <= scores["agreement"] <= 1


def test_the_likeliest_classes_are_told(drawn):
    path, _ = drawn
    reader = open_cache(path).split("train")
    answers = ask(reader, [3], 1)
    found = reader.read([3], outputs=["logits"])["logits"]
    assert answers.kind == "classes" and answers.temperature == 1.0
    (answer,) = answers.by_view.values()
    assert max(value for _, value in answer.items) == pytest.approx(float(found.weights.max()))
    assert all(value > 0 for _, value in answer.items)


@pytest.mark.parametrize("objective", ["dist", "kl(standardise=1)", "kl", "kl(temperature=2)"])
def test_what_they_cannot_serve_is_refused_before_a_run_is_begun(drawn, tmp_path, objective):
    with pytest.raises(UsageError, match="needs every class's logit|sampled at temperature 1, not") as caught:
        finish(train_student(cache=drawn[0], out=tmp_path / "run", objective=objective, **FAST))
    assert "--encode logits=" in caught.value.hint and not (tmp_path / "run").exists()


def test_no_probe_is_fitted_on_them(drawn):
    with pytest.raises(UsageError, match="a probe needs dense features"):
        finish(fit_probe(cache=drawn[0], output="logits"))


def test_other_outputs_are_not_sampled(tmp_path):
    with pytest.raises(UsageError, match="sampled:5 keeps some classes of logits; every number of embedding counts"):
        finish(extract_cache(out=tmp_path / "cache", encode={"embedding": "sampled:5"}, **TEACHER))


def test_a_biased_rule_is_told_once_before_training(tmp_path):
    finish(extract_cache(out=tmp_path / "cache", encode={"logits": "topk:2"}, **CLASSES, **TEACHER))
    events = list(
        train_student(cache=tmp_path / "cache", out=tmp_path / "run", objective="kl(rest=renormalise)", **FAST)
    )
    told = [at for at, event in enumerate(events) if isinstance(event, Message) and "is biased" in event.text]
    steps = [at for at, event in enumerate(events) if not isinstance(event, Message)]
    assert len(told) == 1 and told[0] < steps[0]


def test_without_an_objective_the_temperature_is_one_that_the_cache_has(drawn, tmp_path):
    path, _ = drawn
    training = train_student(cache=path, out=tmp_path / "run", **FAST)
    assert Message("student bert:1x16, objective kl(temperature=1),align-uniform,ce") in list(training)
