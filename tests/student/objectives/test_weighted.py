"""Objectives from text: what is read, what is refused and in which words, and the sum itself."""

from dataclasses import replace

import pytest
import torch

from featurecache.errors import UnknownNameError, UsageError
from featurecache.types import NO_LABEL, OutputSpec
from student.objectives import OBJECTIVES
from student.objectives.base import Dimensions
from student.objectives.weighted import make_objective, objective_options, option_text, parse_objective, term_needs
from tests.contracts.objective_contract import DIMENSIONS, OUTPUTS, TOKENS, random_batch, random_outputs

EVERYTHING = ("embedding", "logits", "labels", "hidden.6", "qkv.6")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ce", [("ce", {}, 1.0)]),
        ("kl:1.0,align-uniform:0.5,ce", [("kl", {}, 1.0), ("align-uniform", {}, 0.5), ("ce", {}, 1.0)]),
        ("kl(temperature=2):1.0", [("kl", {"temperature": 2.0}, 1.0)]),
        (" kl ( temperature = 2 ) : 3 , mse ", [("kl", {"temperature": 2.0}, 3.0), ("mse", {}, 1.0)]),
        ("infonce(negatives=64,symmetric=0)", [("infonce", {"negatives": 64, "symmetric": False}, 1.0)]),
        ("align-uniform(alpha=1,t=3):0,ce:1e-3", [("align-uniform", {"alpha": 1.0, "t": 3.0}, 0.0), ("ce", {}, 0.001)]),
        ("cosine()", [("cosine", {}, 1.0)]),
        ("kl(rest=uniform):2", [("kl", {"rest": "uniform"}, 2.0)]),
        ("kl( rest = label , temperature=1)", [("kl", {"rest": "label", "temperature": 1.0}, 1.0)]),
    ],
)
def test_reads_names_options_and_weights(text, terms):
    assert parse_objective(text) == terms


def test_options_have_the_type_of_their_default():
    options = parse_objective("infonce(negatives=64,symmetric=1,temperature=1)")[0].options
    assert [type(value) for value in options.values()] == [int, bool, float]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("kll", "no objective is called 'kll'", "did you mean 'kl'?"),
        ("align_uniform", "no objective is called 'align_uniform'", "did you mean 'align-uniform'?"),
        (
            "kl(temprature=2)",
            "the objective 'kl' has no option 'temprature'",
            "its options and their defaults: temperature=4, standardise=0, rest=bucket",
        ),
        ("mse(t=2)", "the objective 'mse' has no option 't'", "it has none"),
        ("kl(temperature=hot)", "kl: temperature is 'hot'", "write a number"),
        ("kl(temperature)", "kl: cannot read the option 'temperature'", "write NAME, NAME:WEIGHT"),
        ("kl(temperature=2,temperature=3)", "the option 'temperature' stands twice", "give it once"),
        ("kl(temperature=-2)", "kl: temperature is -2", "above 0"),
        ("kl(rest=uniforn)", "no rest of kl is called 'uniforn'", "did you mean 'uniform'?"),
        ("kl(rest=2)", "no rest of kl is called '2'", "known: bucket, label, renormalise, uniform"),
        ("kl(rest=)", "no rest of kl is called ''", "known: bucket"),
        ("kl(rest=Bucket )", "no rest of kl is called 'Bucket'", "did you mean 'bucket'?"),
        ("infonce(negatives=2.5)", "infonce: negatives is '2.5'", "write a whole number"),
        ("infonce(symmetric=2)", "infonce: symmetric is '2'", "write 0 or 1"),
        ("kl:much", "the weight of kl is 'much'", "write a number"),
        ("kl:", "the weight of kl is ''", "write a number"),
        ("kl:nan", "the weight of kl is 'nan'", "write a number"),
        ("kl:-1", "the weight of kl is -1", "a weight is 0 or more"),
        ("kl:1,ce,kl(temperature=1):2", "the objective 'kl' stands twice", "give it once"),
        ("kl:0,ce:0", "every weight in 'kl:0,ce:0' is 0", "above 0"),
        ("kl(temperature=2", "cannot read the objective 'kl(temperature=2'", "write NAME, NAME:WEIGHT"),
        ("kl:1:2", "cannot read the objective 'kl:1:2'", "write NAME, NAME:WEIGHT"),
        ("kl,,ce", "cannot read the objective ''", "write NAME, NAME:WEIGHT"),
        ("", "cannot read the objective ''", "write NAME, NAME:WEIGHT"),
    ],
)
def test_refuses_with_what_is_right(text, message, hint):
    with pytest.raises(UsageError) as caught:
        make_objective(text, DIMENSIONS, EVERYTHING)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_unknown_name_is_an_unknown_name_error():
    with pytest.raises(UnknownNameError):
        parse_objective("nope")


@pytest.mark.parametrize(
    ("text", "available", "message", "hint"),
    [
        (
            "kl",
            ("embedding", "labels"),
            "the objective 'kl' needs logits; there is embedding, labels",
            "`fc probe --cache CACHE`",
        ),
        (
            "ce,infonce",
            ("labels",),
            "the objective 'infonce' needs embedding; there is labels",
            "`fc extend CACHE --outputs embedding`",
        ),
        ("kl,ce", ("logits",), "the objective 'ce' needs labels; there is logits", "`--data`"),
        ("mse", (), "the objective 'mse' needs embedding; there is nothing", "`fc extend CACHE --outputs embedding`"),
    ],
)
def test_refuses_an_objective_whose_needs_are_not_there(text, available, message, hint):
    with pytest.raises(UsageError) as caught:
        make_objective(text, DIMENSIONS, available)
    assert caught.value.message == message
    assert hint in caught.value.hint


def test_sums_the_weighted_parts_and_tells_them_apart():
    objective = make_objective("kl(temperature=1):0.5,mse:2,ce:0", DIMENSIONS, EVERYTHING)
    outputs = random_outputs(6, heads=objective.heads)
    batch = random_batch(6, targets=objective.needs)
    total, parts = objective(outputs, batch)
    assert list(parts) == ["kl", "mse", "ce"]
    assert not any(value.requires_grad for value in parts.values())
    torch.testing.assert_close(total.detach(), 0.5 * parts["kl"] + 2 * parts["mse"])
    total.backward()
    alone = outputs["embedding"].detach().requires_grad_()
    (2 * (alone - batch.targets["embedding"]).square().mean()).backward()
    torch.testing.assert_close(outputs["embedding"].grad, alone.grad)


def test_needs_heads_and_bank_of_all_parts():
    objective = make_objective("kl,infonce(negatives=8),align-uniform,cosine,ce", DIMENSIONS, EVERYTHING)
    assert objective.needs == ("logits", "embedding", "labels")
    assert objective.heads == ("logits", "embedding", "labels")
    assert objective.bank_rows == 8
    assert {name.split(".")[1] for name in objective.state_dict()} == {"infonce", "align-uniform"}


def test_a_batch_without_labels_still_trains_the_other_parts():
    objective = make_objective("ce,cosine", DIMENSIONS, EVERYTHING)
    batch = random_batch(4, targets=objective.needs)
    batch.labels.fill_(NO_LABEL)
    total, parts = objective(random_outputs(4, heads=objective.heads), batch)
    assert parts["ce"] == 0 and torch.equal(total.detach(), parts["cosine"])


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_of_the_table_is_made_from_its_own_defaults(name):
    options = ",".join(f"{option}={option_text(default)}" for option, default in objective_options(name).items())
    expected = tuple(need.replace("{layer}", "6") for need in OBJECTIVES.get(name).needs)
    assert make_objective(f"{name}({options}):1", DIMENSIONS, EVERYTHING).needs == expected


def test_notes_of_all_parts():
    objective = make_objective("kl(rest=renormalise),ce", DIMENSIONS, EVERYTHING)
    assert len(objective.notes) == 1 and "biased" in objective.notes[0]
    assert make_objective("kl,ce", DIMENSIONS, EVERYTHING).notes == ()


TWO = {"a": Dimensions(features=DIMENSIONS.features, targets=DIMENSIONS.targets), "b": DIMENSIONS}
LOGITS_ONLY = {**TWO, "c": Dimensions(features=DIMENSIONS.features, targets={"logits": 3})}


def of_two(batch, other):
    """A batch and outputs with the targets of two teachers."""
    return {f"{name}/{output}": value for name, each in (("a", batch), ("b", other)) for output, value in each.items()}


def test_each_teacher_counts_for_its_share_and_is_shown_alone():
    objective = make_objective("cosine:3,mse@b:0.5,ce", DIMENSIONS, ["labels"], TWO)
    assert objective.weights == {"cosine@a": 1.5, "cosine@b": 1.5, "mse@b": 0.5, "ce": 1.0}
    assert objective.needs == ("a/embedding", "b/embedding", "labels") and "b/embedding" in objective.heads
    alone = {name: make_objective("cosine,mse,ce", DIMENSIONS, EVERYTHING) for name in "ab"}
    outputs = {name: random_outputs(6, heads=EVERYTHING, seed=seed) for seed, name in enumerate("ab")}
    batches = {name: random_batch(6, targets=EVERYTHING, seed=seed) for seed, name in enumerate("ab")}
    both = replace(batches["a"], targets=of_two(batches["a"].targets, batches["b"].targets))
    shared = {name: outputs["a"][name] for name in ("features", "labels")}
    total, values = objective({**of_two(outputs["a"], outputs["b"]), **shared}, both)
    expected = {f"{part}@{name}": alone[name](outputs[name], batches[name])[1][part] for part, name in PARTS}
    assert list(values) == ["cosine@a", "cosine@b", "mse@b", "ce"]
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value)
    torch.testing.assert_close(total.detach(), sum(objective.weights[name] * value for name, value in values.items()))
    total.backward()
    assert outputs["b"]["embedding"].grad.abs().sum() > 0 and outputs["b"]["logits"].grad is None


PARTS = [("cosine", "a"), ("cosine", "b"), ("mse", "b")]


def test_terms_go_to_the_teachers_that_serve_them_and_an_ensemble_before_all():
    objective = make_objective("kl,cosine", DIMENSIONS, ["labels"], LOGITS_ONLY)
    assert list(objective.parts) == ["kl@a", "kl@b", "kl@c", "cosine@a", "cosine@b"]
    assert objective.weights["kl@c"] == pytest.approx(1 / 3) and objective.weights["cosine@a"] == 0.5
    objective = make_objective("kl,kl@c(temperature=1):2,cosine", DIMENSIONS, ["logits", "labels"], LOGITS_ONLY)
    assert list(objective.parts) == ["kl", "kl@c", "cosine@a", "cosine@b"]
    assert objective.needs == ("logits", "c/logits", "a/embedding", "b/embedding")


@pytest.mark.parametrize(
    ("text", "teachers", "message", "hint"),
    [
        ("cosine@d", LOGITS_ONLY, "no teacher of this run is called 'd'", "known: a, b, c"),
        ("cosine@c", LOGITS_ONLY, "the objective 'cosine@c' needs embedding; there is labels, logits", "--outputs"),
        ("cosine@a", None, "'cosine@a' names a teacher, and there is one only", "write cosine"),
        ("cosine,cosine@a:2", TWO, "the objective 'cosine@a' stands twice", "give it once"),
        ("cosine@a,cosine@a", TWO, "the objective 'cosine@a' stands twice", "give it once"),
        ("cosine@", TWO, "cannot read the objective 'cosine@'", "NAME@TEACHER"),
        ("cosine@a@b", TWO, "cannot read the objective 'cosine@a@b'", "NAME@TEACHER"),
        ("cosin@a", TWO, "no objective is called 'cosin'", "did you mean 'cosine'?"),
        ("cosine", {"c": LOGITS_ONLY["c"]}, "the objective 'cosine' needs embedding; there is labels, logits", ""),
    ],
)
def test_refuses_teachers_that_cannot_serve(text, teachers, message, hint):
    with pytest.raises(UsageError) as caught:
        make_objective(text, DIMENSIONS, ["labels"], teachers)
    assert message in caught.value.message and hint in caught.value.hint


def test_an_objective_on_layers_can_stand_for_several_pairs():
    dimensions = replace(DIMENSIONS, outputs={**OUTPUTS, "hidden.3": OutputSpec("hidden.3", (5,), longest=TOKENS)})
    text = "hidden:2,hidden(layer=3,student_layer=2):0.5"
    objective = make_objective(text, dimensions, [*EVERYTHING, "hidden.3"])
    assert objective.needs == ("hidden.6", "hidden.3") and objective.heads == ("hidden.2",)
    assert objective.weights == {"hidden": 2, "hidden-2": 0.5}
    outputs, batch = random_outputs(3, heads=objective.heads), random_batch(3, targets=("hidden.6",))
    batch = replace(batch, targets={**batch.targets, "hidden.3": -batch.targets["hidden.6"]})
    total, parts = objective.double()(outputs, batch)
    torch.testing.assert_close(total.detach(), 2 * parts["hidden"] + 0.5 * parts["hidden-2"])
    with pytest.raises(UsageError, match="stands twice"):
        parse_objective("hidden(layer=3),ce,hidden(layer=3):2")


@pytest.mark.parametrize(
    ("text", "available", "needed"),
    [
        ("hidden(layer=3)", ("hidden.6", "labels"), "hidden.3"),
        ("minilm", ("hidden.6",), "qkv.last"),
        ("attention(layer=0)", ("qkv.6",), "qkv.0"),
    ],
)
def test_a_layer_that_is_not_cached_is_refused_with_the_command_that_adds_it(text, available, needed):
    with pytest.raises(UsageError, match=f"needs {needed}; there is") as caught:
        make_objective(text, DIMENSIONS, available, cache="./mine")
    assert caught.value.hint == f"add it with `fc extend ./mine --outputs {needed}`"


def test_the_deepest_layer_is_that_of_the_largest_number():
    available = ["hidden.6", "hidden.12", "hidden.9", "qkv.40", "other/hidden.99"]
    assert term_needs(parse_objective("hidden")[0], available) == ("hidden.12",)
    assert term_needs(parse_objective("hidden(layer=-1),ce")[1], available) == ("labels",)
