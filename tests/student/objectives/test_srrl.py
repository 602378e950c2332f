"""SRRL against numpy, the frozen classifier, sparse logits, and caches that do not hold a classifier."""

import dataclasses

import numpy as np
import pytest
import torch

from featurecache.errors import UsageError
from featurecache.types import TopLogits
from student.objectives import Batch
from student.objectives.srrl import SRRL
from tests.contracts.finite_differences import assert_same_loss_and_gradient
from tests.contracts.objective_contract import (
    CLASSES,
    DIMENSIONS,
    FEATURES,
    WIDTH,
    ObjectiveContract,
    random_batch,
    random_outputs,
)


class TestContract(ObjectiveContract):
    def make_objective(self):
        return SRRL(DIMENSIONS)


def by_hand(objective, features, embedding, logits):
    first, last = objective.connector[0], objective.connector[2]
    weights = (value.detach().numpy() for value in (first.weight, first.bias, last.weight, last.bias))
    in_weight, in_bias, out_weight, out_bias = weights
    connected = np.maximum(features @ in_weight.T + in_bias, 0) @ out_weight.T + out_bias
    weight, bias = (value.double().numpy() for value in DIMENSIONS.classifier)
    return ((connected - embedding) ** 2).mean() + ((connected @ weight.T + bias - logits) ** 2).mean()


def test_value_and_gradient_are_those_of_the_formula():
    outputs, batch = random_outputs(5, heads=()), random_batch(5, targets=("embedding", "logits"))
    objective = SRRL(DIMENSIONS).double()
    embedding, logits = (batch.targets[name].numpy() for name in ("embedding", "logits"))
    assert_same_loss_and_gradient(
        objective(outputs, batch), lambda x: by_hand(objective, x, embedding, logits), outputs["features"]
    )


def test_sparse_logits_are_the_classifier_of_the_embedding():
    outputs, batch = random_outputs(5, heads=()), random_batch(5, targets=("embedding",))
    weight, bias = (value.double() for value in DIMENSIONS.classifier)
    logits = batch.targets["embedding"] @ weight.T + bias
    values, indices = logits.topk(2, dim=1)
    logsumexp = logits.logsumexp(1, keepdim=True)
    sparse = TopLogits(values=values, indices=indices, logsumexp=logsumexp, temperatures=(1.0,), size=CLASSES)
    objective = SRRL(DIMENSIONS).double()
    losses = [
        objective(outputs, Batch(inputs={}, targets=targets, labels=batch.labels, rows=batch.rows))
        for targets in ({**batch.targets, "logits": logits}, {**batch.targets, "logits": sparse})
    ]
    torch.testing.assert_close(losses[1], losses[0])


def test_the_connector_has_its_shape_and_the_classifier_is_frozen():
    objective = SRRL(DIMENSIONS)
    shapes = {name: tuple(value.shape) for name, value in objective.named_parameters()}
    hidden = (FEATURES + WIDTH) // 2
    assert shapes["connector.0.weight"] == (hidden, FEATURES) and shapes["connector.2.weight"] == (WIDTH, hidden)
    assert all(name.startswith("connector") for name in shapes)
    assert {name for name, _ in objective.named_buffers()} == {"weight", "bias"}


def test_the_connector_gives_negative_values_too():
    objective = SRRL(DIMENSIONS)
    assert (objective.connector(torch.randn(50, FEATURES)) < 0).any()


def test_a_cache_without_a_classifier_is_refused():
    with pytest.raises(UsageError, match="needs the classifier") as caught:
        SRRL(dataclasses.replace(DIMENSIONS, classifier=None))
    assert "`fc probe --cache CACHE`" in caught.value.hint


def test_a_classifier_of_another_embedding_is_refused():
    other = (torch.zeros(CLASSES, WIDTH + 1), torch.zeros(CLASSES))
    with pytest.raises(UsageError, match="has 6 dimensions"):
        SRRL(dataclasses.replace(DIMENSIONS, classifier=other))
