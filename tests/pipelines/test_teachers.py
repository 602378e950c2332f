"""Runs with several teachers: parts of one cache and other caches, from the recipe to the scores."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featurecache.errors import IdentityError, UsageError
from featurecache.store.reader import open_cache
from pipelines import evaluate_run, extend_cache, extract_cache, finish, train_student
from pipelines.build import build, open_rows
from pipelines.events import Advance, Message
from pipelines.recipe import TrainRecipe
from student.balance import load_balances
from student.export import load_student
from student.selection import validation_rows

FAST = {"student": "bert:1x64", "max_length": 24, "batch_size": 16, "workers": 0, "device": "cpu", "validation": 0.2}
HERE = {"workers": 0, "device": "cpu"}


def random_teacher(dim, seed, classes=4):
    return {"teacher": "random", "model_kwargs": {"dim": dim, "classes": classes, "seed": seed}}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Two teachers of 120 texts, and a third one in another cache of 130."""
    first, second = tmp_path_factory.mktemp("a") / "cache", tmp_path_factory.mktemp("b") / "cache"
    finish(extract_cache(data="synthetic-text:120", out=first, **random_teacher(16, 0), **HERE))
    finish(extend_cache(cache=first, **random_teacher(12, 1), **HERE))
    finish(extract_cache(data="synthetic-text:130", out=second, **random_teacher(8, 2), **HERE))
    return first, second


NAMES = ("random-text", "random-text-2", "random-text-3")


def run_of(caches, out, **options):
    """A finished run: its folder, its summary, its messages."""
    training, told = train_student(cache=list(caches), out=out, **{"steps": 60, **FAST, **options}), []
    while True:
        try:
            event = next(training)
            told += [event.text] if isinstance(event, Message) else []
        except StopIteration as stop:
            return out, stop.value, told


@pytest.fixture(scope="module")
def run(caches, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return run_of(caches, out, teachers=("all",), objective="mse:2,kl(temperature=1),cosine@random-text-3:0.5")


def test_each_teacher_has_a_head_and_a_loss(run):
    out, summary, told = run
    expected = {f"{term}@{name}" for term in ("mse", "kl") for name in NAMES} | {"cosine@random-text-3", "loss"}
    assert set(summary["training"]) == set(summary["validation"]) == expected
    student, _ = load_student(out / "student")
    widths = {f"{name}/embedding": dim for name, dim in zip(NAMES, (16, 12, 8), strict=True)}
    assert student.widths == {**widths, **{f"{name}/logits": 4 for name in NAMES}}
    found = summary["validation"]
    parts = [2 * found[f"mse@{name}"] / 3 + found[f"kl@{name}"] / 3 for name in NAMES]
    assert found["loss"] == pytest.approx(sum(parts) + found["cosine@random-text-3"] / 2, rel=1e-4)
    assert "3 teachers: random-text, random-text-2, random-text-3" in told
    assert f"embeddings are balanced by phi-s: {', '.join(widths)}" in told
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-2]["loss"] < lines[0]["loss"]


def test_batches_are_balanced_by_the_training_rows(caches):
    recipe = TrainRecipe(cache=tuple(map(str, caches)), objective="mse", student="bert:1x64", validation=0.3)
    rows = open_rows(recipe)
    built = build(recipe, rows, **HERE)
    assert rows.outputs == ("random-text/embedding", "random-text-3/embedding")  # the first one of each cache
    for name in rows.outputs:
        every = torch.cat([batch.targets[name] for batch in built.training.in_order(16)]).double()
        np.testing.assert_allclose(every.var(0, unbiased=False), 1, rtol=1e-4)


def test_scores_are_those_of_each_teacher(run, caches):
    out, *_ = run
    scores = finish(evaluate_run(run=out, **HERE))
    student, facts = load_student(out / "student")
    assert list(facts["teachers"]) == list(scores["teachers"]) == list(NAMES)
    readers = {"random-text": 0, "random-text-2": 0, "random-text-3": 1}
    balances = load_balances(out / "student/balance.safetensors")
    first = open_cache(caches[0]).split("test")
    texts = dict(zip(first.keys, samples_of(first), strict=True))
    network = student.backbone.input
    with torch.inference_mode():
        outputs = student(network.collate([network.prepare(texts[key]) for key in first.keys]))
    for name, cache in readers.items():
        reader = open_cache(caches[cache]).split("test")
        prefix = f"{name}/" if name == "random-text-2" else ""
        read = reader.read(reader.rows_of(first.keys))
        embedding = balances[f"{name}/embedding"].apply(read[f"{prefix}embedding"]).double()
        logits, ours = read[f"{prefix}logits"].double(), outputs[f"{name}/logits"].double()
        found = scores["teachers"][name]
        assert found["agreement"] == pytest.approx((logits.argmax(1) == ours.argmax(1)).double().mean().item())
        divergence = (logits.softmax(1) * (logits.log_softmax(1) - ours.log_softmax(1))).sum(1).mean()
        assert found["kl"] == pytest.approx(divergence.item(), rel=1e-3)
        near = torch.cosine_similarity(embedding, outputs[f"{name}/embedding"].double()).mean()
        assert found["cosine"] == pytest.approx(near.item(), abs=1e-4)
    assert {name: scores[name] for name in ("agreement", "kl", "cosine")} == {
        name: scores["teachers"]["random-text"][name] for name in ("agreement", "kl", "cosine")
    }


def samples_of(reader):
    from featurecache.sources import open_data

    source = open_data("synthetic-text:120")["test"]
    index = {key: at for at, key in enumerate(source.keys)}
    return [source[index[key]].encoded.decode() for key in reader.keys]


def test_an_interrupted_run_of_two_teachers_ends_with_the_same_bits(caches, tmp_path):
    given = {**FAST, "cache": list(caches), "steps": 120, "objective": "cosine,kl", "ensemble": "probabilities"}
    finish(train_student(out=tmp_path / "whole", **given))
    training = train_student(out=tmp_path / "parts", targets="device", **given)
    for event in training:
        if isinstance(event, Advance) and event.done == 110:
            training.close()
    finish(train_student(out=tmp_path / "parts", resume=True, **given))
    whole, parts = (load_file(tmp_path / name / "student/student.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    with pytest.raises(IdentityError) as caught:
        finish(train_student(out=tmp_path / "parts", resume=True, **{**given, "ensemble": "logits"}))
    assert [field for field, *_ in caught.value.fields] == ["ensemble"]


def test_an_ensemble_is_one_teacher_of_logits(caches, tmp_path):
    objective = "kl(temperature=2),cosine"
    out, summary, told = run_of(caches, tmp_path / "run", objective=objective, ensemble="probabilities", steps=20)
    assert set(summary["training"]) == {"loss", "kl", "cosine@random-text", "cosine@random-text-3"}
    assert "logits are the mean of the probabilities of random-text/logits, random-text-3/logits" in told
    recipe = TrainRecipe(cache=tuple(map(str, caches)), objective=objective, ensemble="probabilities", **STUDENT)
    rows = open_rows(recipe)
    batch = next(build(recipe, rows, **HERE).training.in_order(8))
    first, second = (open_cache(cache).split() for cache in caches)
    keys = [first.keys[row] for row in batch.rows]
    members = [reader.read(reader.rows_of(keys))["logits"].double() for reader in (first, second)]
    mean = sum((member / 2).softmax(1) for member in members) / 2
    torch.testing.assert_close((batch.targets["logits"].double() / 2).softmax(1), mean, rtol=1e-4, atol=1e-6)
    scores = finish(evaluate_run(run=out, **HERE))
    held_out = [open_cache(cache).split("test") for cache in caches]
    members = [reader.read(reader.rows_of(held_out[0].keys))["logits"] for reader in held_out]
    found = sum(member.softmax(1) for member in members).argmax(1)
    assert scores["rows"] == 30 and set(scores["teachers"]["random-text"]) == {"teacher_accuracy", *SCORES}
    student, _ = load_student(out / "student")
    network = student.backbone.input
    with torch.inference_mode():
        said = student(network.collate([network.prepare(text) for text in samples_of(held_out[0])]))["logits"]
    assert scores["agreement"] == pytest.approx((said.argmax(1) == found).double().mean().item())


STUDENT = {"student": "bert:1x64", "max_length": 24}
SCORES = ("agreement", "kl", "cosine")


def test_one_of_several_by_name_is_a_run_of_one(caches, tmp_path):
    out, summary, _ = run_of(caches[:1], tmp_path / "run", teachers=("random-text-2",), objective="cosine,kl", steps=5)
    assert set(summary["training"]) == {"loss", "cosine", "kl"}
    student, facts = load_student(out / "student")
    assert student.widths == {"embedding": 12, "logits": 4} and "teachers" not in facts
    reader = open_cache(caches[0]).split("train")
    assert facts["targets"]["embedding"] == reader.made_by("random-text-2/embedding")
    assert finish(evaluate_run(run=out, **HERE))["cosine"] is not None


def test_what_is_not_asked_for_leaves_no_trace(caches, tmp_path):
    out, summary, told = run_of(caches[:1], tmp_path / "run", objective="cosine", steps=2)
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["cache"] == str(caches[0]) and not {"teachers", "balance", "ensemble"} & recipe.keys()
    assert not any("teacher" in line or "balanced" in line for line in told)
    assert not (out / "student/balance.safetensors").exists()
    held_out = validation_rows(open_cache(caches[0]).split("train").keys, 0.2)
    assert summary["rows"]["validation"] == held_out.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ("vit",)}, "no teacher of these caches is called 'vit'"),
        ({"ensemble": "logits"}, "an ensemble needs several teachers"),
        ({"ensemble": "logits", "teachers": ("random-text",)}, "an ensemble needs several teachers"),
        ({"balance": "phi-s", "objective": "kl"}, "--balance phi-s is for embeddings"),
        ({"objective": "kl@random-text"}, "names a teacher, and there is one only"),
        ({"teachers": ("all",), "objective": "kl@random"}, "no teacher of this run is called 'random'"),
    ],
)
def test_refused_before_a_run_is_made(caches, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        run_of(caches[:1], tmp_path / "run", steps=1, **options)
    assert not (tmp_path / "run").exists()


def test_samples_that_the_second_cache_lacks_are_refused_or_left_out(caches, tmp_path):
    given = {"objective": "cosine", "steps": 1}
    with pytest.raises(UsageError, match="10 of 130 samples are not in the cache"):
        run_of(caches[::-1], tmp_path / "run", **given)
    _, summary, told = run_of(caches[::-1], tmp_path / "run", missing="skip", **given)
    assert summary["rows"]["missing"] == 10 and "10 samples not in the cache, skipped" in told


def test_a_cache_is_given_once(caches):
    with pytest.raises(UsageError, match="each --cache is given once"):
        TrainRecipe(cache=(str(caches[0]), str(caches[0])))


def test_caches_that_moved_are_all_named(run, caches):
    out, *_ = run
    plain = finish(evaluate_run(run=out, **HERE))
    assert finish(evaluate_run(run=out, cache=list(caches), **HERE)) == plain
    with pytest.raises(UsageError, match="learned from 2 caches, and 1 were given"):
        finish(evaluate_run(run=out, cache=caches[0], **HERE))


def test_the_mean_of_probabilities_is_of_one_temperature(caches, monkeypatch):
    from student.objectives.weighted import Term

    recipe = TrainRecipe(cache=tuple(map(str, caches)), objective="kl", ensemble="probabilities")
    taught = open_rows(recipe).taught
    assert taught._temperature("kl") == 4 and taught._temperature("kl(temperature=2),cosine,ce") == 2
    assert taught._temperature("cosine") == 1
    terms = [Term("kl", {}, 1.0), Term("kl", {"temperature": 1.0}, 1.0), Term("kl@random-text", {"temperature": 3}, 1)]
    monkeypatch.setattr("pipelines.taught.parse_objective", lambda text: terms)
    with pytest.raises(UsageError, match="is another at each temperature, and the objective has 1 and 4") as refused:
        taught._temperature("two objectives of logits")
    assert "--ensemble logits" in refused.value.hint


def test_features_of_a_balanced_teacher_are_judged_in_one_space(caches, tmp_path):
    options = {"teachers": ("random-text",), "objective": "mse", "steps": 2, "validation": 0.1}
    plain, balanced = (run_of(caches[:1], tmp_path / how, balance=how, **options)[0] for how in ("none", "standardise"))
    expected, found = (finish(evaluate_run(run=out, **HERE)) for out in (plain, balanced))
    # a linear probe standardises anyway
    assert found["teacher_linear"] == pytest.approx(expected["teacher_linear"], abs=0.11)
    assert found["teacher_neighbours"] > 0.3  # four classes; of two spaces it would be chance


def test_a_chosen_teacher_is_the_one_that_is_judged(caches, tmp_path):
    out, *_ = run_of(caches[:1], tmp_path / "run", teachers=("random-text-2",), objective="cosine,ce", steps=5)
    scores = finish(evaluate_run(run=out, **HERE))
    reader = open_cache(caches[0]).split("test")
    wanted = reader.made_by("random-text-2/embedding")
    assert json.loads((out / "student/student.json").read_text())["targets"] == {"embedding": wanted}
    labels = finish(evaluate_run(run=out, **HERE, features=False))
    assert labels["agreement"] == scores["agreement"]


def test_a_resumed_run_keeps_the_balance_that_it_was_begun_with(caches, tmp_path, monkeypatch):
    given = {"objective": "mse", "teachers": ("all",), "steps": 110}
    training = train_student(cache=list(caches), out=tmp_path / "run", **{**FAST, **given})
    for event in training:
        if isinstance(event, Advance) and event.done == 110:
            training.close()
    begun = load_file(tmp_path / "run/balance.safetensors")
    monkeypatch.setattr("pipelines.taught.phi_s", lambda _: pytest.fail("computed anew"))
    run_of(caches, tmp_path / "run", resume=True, **given)
    kept = load_file(tmp_path / "run/student/balance.safetensors")
    assert kept.keys() == begun.keys() and all(torch.equal(kept[name], begun[name]) for name in begun)
