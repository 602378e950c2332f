"""Hidden states, attention scores and relations against loops in plain Python, with texts of different lengths."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import OutputSpec
from student.objectives.attention import AttentionScores, attention_error
from student.objectives.base import Batch, Dimensions
from student.objectives.hidden import HiddenStates, hidden_error
from student.objectives.minilm import MiniLM, relation_divergence
from tests.contracts.objective_contract import DIMENSIONS, ObjectiveContract, random_batch, random_outputs

LENGTHS = (3, 1, 4)
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]


class TestHidden(ObjectiveContract):
    def make_objective(self):
        return HiddenStates(DIMENSIONS)


class TestAttention(ObjectiveContract):
    def make_objective(self):
        return AttentionScores(DIMENSIONS)


class TestMiniLM(ObjectiveContract):
    def make_objective(self):
        return MiniLM(DIMENSIONS, relation_heads=2)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden_by_hand(student, teacher):
    """The mean over real tokens and dimensions of the squared difference."""
    squares = [
        (student[i][t][d] - teacher[i][t][d]) ** 2
        for i, length in enumerate(LENGTHS)
        for t in range(length)
        for d in range(len(teacher[i][t]))
    ]
    return sum(squares) / len(squares)


def heads_of(values, part, heads):
    """values (tokens, 3 * width) -> for each head a list of tokens' vectors, of queries (0), keys (1) or values (2)."""
    width = len(values[0]) // 3
    d = width // heads
    return [[row[part * width + h * d : part * width + (h + 1) * d] for row in values] for h in range(heads)]


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def attention_by_hand(student, teacher, heads):
    squares = []
    for i, length in enumerate(LENGTHS):
        scores = []
        for values in (student[i][:length], teacher[i][:length]):
            q, k = heads_of(values, 0, heads), heads_of(values, 1, heads)
            root = math.sqrt(len(q[0][0]))
            scores.append(
                [dot(q[h][a], k[h][b]) / root for h in range(heads) for a in range(length) for b in range(length)]
            )
        squares += [(a - b) ** 2 for a, b in zip(*scores, strict=True)]
    return sum(squares) / len(squares)


def minilm_by_hand(student, teacher, heads):
    total = 0.0
    for i, length in enumerate(LENGTHS):
        for part in range(3):
            for h in range(heads):
                for a in range(length):
                    rows = []
                    for values in (student[i][:length], teacher[i][:length]):
                        vectors = heads_of(values, part, heads)[h]
                        root = math.sqrt(len(vectors[0]))
                        exponents = [math.exp(dot(vectors[a], other) / root) for other in vectors]
                        rows.append([value / sum(exponents) for value in exponents])
                    divergence = sum(t * math.log(t / s) for s, t in zip(*rows, strict=True))
                    total += divergence / (heads * length)
    return total / len(LENGTHS)


CASES = [
    (hidden_error, hidden_by_hand, {}, 5, 5),
    (attention_error, attention_by_hand, {"heads": 2}, 12, 24),
    (relation_divergence, minilm_by_hand, {"heads": 2}, 12, 24),
    (relation_divergence, minilm_by_hand, {"heads": 4}, 12, 12),
]


@pytest.mark.parametrize(("loss", "by_hand", "options", "width", "dim"), CASES)
def test_value_and_gradient_are_those_of_loops(loss, by_hand, options, width, dim):
    student, teacher = normal(3, 4, width, seed=1).requires_grad_(), normal(3, 4, dim, seed=2)
    value = loss(student, teacher, MASK, **options)
    assert value.item() == pytest.approx(by_hand(student.tolist(), teacher.tolist(), *options.values()), rel=1e-12)
    value.backward()
    for place in [(0, 0, 0), (0, 2, width - 1), (1, 0, 1), (2, 3, width // 2)]:
        moved = [student.detach().clone() for _ in range(2)]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (by_hand(each.tolist(), teacher.tolist(), *options.values()) for each in moved)
        assert student.grad[place].item() == pytest.approx((up - down) / 2e-6, abs=1e-8)
    assert (student.grad[~MASK] == 0).all()


@pytest.mark.parametrize(("loss", "by_hand", "options", "width", "dim"), CASES)
def test_what_stands_at_the_padding_does_not_matter(loss, by_hand, options, width, dim):
    student, teacher = normal(3, 4, width, seed=1), normal(3, 4, dim, seed=2)
    expected = loss(student, teacher, MASK, **options)
    student[~MASK], teacher[~MASK] = 1e3, -7.0
    longer = [torch.nn.functional.pad(values, (0, 0, 0, 3), value=5.0) for values in (student, teacher)]
    mask = torch.nn.functional.pad(MASK, (0, 3))
    assert loss(student, teacher, MASK, **options) == expected
    torch.testing.assert_close(loss(*longer, mask, **options), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("loss", "by_hand", "options", "width", "dim"), CASES)
def test_the_teacher_itself_has_no_loss(loss, by_hand, options, width, dim):
    values = normal(3, 4, dim)
    assert loss(values, values.clone(), MASK, **options).abs() < 1e-15


def test_relations_in_float32_are_those_in_float64_also_where_they_are_sharp():
    student, teacher = 30 * normal(3, 4, 12, seed=1), 30 * normal(3, 4, 24, seed=2)
    exact = relation_divergence(student, teacher, MASK, heads=2)
    value = relation_divergence(student.float().requires_grad_(), teacher.float(), MASK, heads=2)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)


def test_hidden_projects_the_students_states():
    objective = HiddenStates(DIMENSIONS).double()
    outputs, batch = random_outputs(5, heads=objective.heads), random_batch(5, targets=objective.needs)
    weight = objective.projection.weight.detach().numpy()
    states, mask = outputs["hidden.2"].detach().numpy(), batch.inputs["mask"].numpy()
    errors = (states @ weight.T - batch.targets["hidden.6"].numpy()) ** 2
    assert objective(outputs, batch).item() == pytest.approx(errors[mask].mean())
    assert weight.shape == (5, 3) and objective.projection.bias is None


def test_hidden_begins_at_zero_for_a_student_that_is_its_teacher():
    same = replace(DIMENSIONS, layers={"hidden.6": DIMENSIONS.outputs["hidden.6"]})
    batch = random_batch(4, targets=("hidden.6",))
    assert HiddenStates(same).double()(dict(batch.targets), batch) == 0


def test_all_tokens_of_images_are_real():
    shapes = {
        "layers": {"hidden.1": OutputSpec("hidden.1", (4, 5))},
        "outputs": {"hidden.1": OutputSpec("hidden.1", (4, 5))},
    }
    objective = HiddenStates(Dimensions(features=2, targets={"hidden.1": 5}, **shapes)).double()
    student, teacher = normal(2, 4, 5, seed=1), normal(2, 4, 5, seed=2)
    labels = torch.zeros(2, dtype=torch.int64)
    batch = Batch(inputs={"images": labels}, targets={"hidden.1": teacher}, labels=labels, rows=labels)
    assert objective({"hidden.1": student}, batch).item() == pytest.approx(np.mean((student - teacher).numpy() ** 2))


@pytest.mark.parametrize(("width", "heads"), [(768, 48), (384, 48), (128, 32), (100, 25)])
def test_relation_heads_divide_both_widths_and_are_at_most_48(width, heads):
    layers = {"qkv.2": OutputSpec("qkv.2", (3 * width,), longest=4, heads=1)}
    outputs = {"qkv.12": OutputSpec("qkv.12", (3 * 768 if width != 100 else 3 * 75,), longest=4, heads=12)}
    dimensions = Dimensions(features=2, targets={"qkv.12": 2304}, layers=layers, outputs=outputs)
    assert MiniLM(dimensions).relation_heads == heads
    with pytest.raises(UsageError, match="7 relation heads do not divide") as refused:
        MiniLM(dimensions, relation_heads=7)
    assert f" {heads}" in refused.value.hint


def test_other_head_counts_are_refused():
    layers = {"qkv.2": replace(DIMENSIONS.layers["qkv.2"], heads=4)}
    with pytest.raises(
        UsageError, match=r"qkv\.6 of the teacher has 2 attention heads, and qkv\.2 of the student has 4"
    ):
        AttentionScores(replace(DIMENSIONS, layers=layers))


def test_another_patch_grid_is_refused_with_both_counts():
    dimensions = replace(
        DIMENSIONS,
        outputs={"hidden.6": OutputSpec("hidden.6", (197, 5))},
        layers={"hidden.2": OutputSpec("hidden.2", (65, 3))},
    )
    with pytest.raises(
        UsageError, match=r"hidden\.6 has 197 tokens for each image, the student's hidden\.2 has 65"
    ) as refused:
        HiddenStates(dimensions)
    assert "--img-size" in refused.value.hint


def test_layers_that_are_not_there_are_refused_with_those_that_are():
    with pytest.raises(UsageError, match=r"the student has no hidden\.9") as refused:
        HiddenStates(DIMENSIONS, student_layer=9)
    assert refused.value.hint == "it has hidden.2: choose with student_layer=NUMBER"
    with pytest.raises(UsageError, match=r"the cache has no qkv\.1"):
        MiniLM(DIMENSIONS, layer=1)


def test_other_tokens_than_the_teachers_are_refused():
    objective = HiddenStates(DIMENSIONS).double()
    batch = random_batch(3, targets=objective.needs)
    with pytest.raises(UsageError, match="the teacher has 4 tokens in a batch, and the student 3"):
        objective({"hidden.2": normal(3, 3, 3)}, batch)
