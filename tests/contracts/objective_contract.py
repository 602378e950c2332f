"""What every objective must do, whatever it measures."""

import inspect
import re
from typing import get_args

import pytest
import torch
from torch import Tensor

from featurecache.types import NO_LABEL, OutputSpec
from student.objectives import OBJECTIVES, Batch, Dimensions, Objective

CLASSES, FEATURES, WIDTH = 7, 10, 6
TOKENS = 4
OUTPUTS = {
    "hidden.6": OutputSpec("hidden.6", (5,), longest=TOKENS),
    "qkv.6": OutputSpec("qkv.6", (24,), longest=TOKENS, heads=2),
}
LAYERS = {
    "hidden.2": OutputSpec("hidden.2", (3,), longest=TOKENS),
    "qkv.2": OutputSpec("qkv.2", (12,), longest=TOKENS, heads=2),
}
_LAYER_WIDTHS = {name: spec.shape[-1] for name, spec in (OUTPUTS | LAYERS).items()}
DIMENSIONS = Dimensions(
    features=FEATURES,
    targets={"embedding": WIDTH, "logits": CLASSES, **{name: spec.shape[-1] for name, spec in OUTPUTS.items()}},
    outputs=OUTPUTS,
    layers=LAYERS,
    labels=torch.tensor([0, 1, NO_LABEL, 2, 0, 0, NO_LABEL, 1, 2, 1, 0, NO_LABEL]),
    classifier=(torch.linspace(-1, 1, CLASSES * WIDTH).reshape(CLASSES, WIDTH), torch.linspace(-0.3, 0.3, CLASSES)),
)
_HEADS = {"labels": CLASSES, "logits": CLASSES, "embedding": WIDTH}


def random_batch(count: int, *, targets: tuple[str, ...], bank_rows: int = 0, seed: int = 0) -> Batch:
    """Random float64 targets; every third sample from the second on has no label. Texts of 1 to 4 tokens where targets
    are for each token."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    labels[1::3] = NO_LABEL
    lengths = torch.randint(1, TOKENS + 1, (count, 1), generator=draw)
    lengths[-1] = TOKENS
    mask = torch.arange(TOKENS) < lengths
    values = {name: _values(draw, count, name) for name in targets if name != "labels"}
    return Batch(
        inputs={"mask": mask} if any(value.ndim == 3 for value in values.values()) else {},
        targets={name: value * mask[:, :, None] if value.ndim == 3 else value for name, value in values.items()},
        labels=labels,
        rows=torch.randperm(count, generator=draw),
        bank={"embedding": _normal(draw, bank_rows, WIDTH)} if bank_rows else {},
    )


def random_outputs(count: int, *, heads: tuple[str, ...], seed: int = 1) -> dict[str, Tensor]:
    """Random float64 student outputs that want gradients: features, and the heads."""
    draw = torch.Generator().manual_seed(seed)
    return {name: _values(draw, count, name).requires_grad_() for name in ("features", *heads)}


def _values(draw: torch.Generator, count: int, name: str) -> Tensor:
    """(count, width), or (count, tokens, width) of a layer; of a head the width that its target has."""
    if name in _LAYER_WIDTHS:
        return torch.randn(count, TOKENS, _LAYER_WIDTHS[name], generator=draw, dtype=torch.float64)
    return _normal(draw, count, FEATURES if name == "features" else _HEADS[name])


def _normal(draw: torch.Generator, count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=draw, dtype=torch.float64)


class ObjectiveContract:
    """Subclass it and say how to make the objective; outputs and targets hold nothing that it does not declare."""

    def make_objective(self) -> Objective:
        raise NotImplementedError

    @pytest.fixture
    def objective(self):
        torch.manual_seed(0)
        return self.make_objective().double()

    def batch(self, objective, count):
        return random_batch(count, targets=objective.needs, bank_rows=objective.bank_rows)

    def test_is_in_the_table_under_its_name(self, objective):
        assert OBJECTIVES.get(objective.name) is type(objective)

    def test_cites_its_paper(self, objective):
        assert re.search(r"\d{4}, .*arXiv \d{4}\.\d{4,5}$", objective.paper)

    def test_options_are_numbers_or_words_with_defaults(self, objective):
        _, *options = inspect.signature(type(objective)).parameters.values()
        assert all(option.kind is option.KEYWORD_ONLY for option in options)
        for option in options:
            words = get_args(option.annotation)
            assert option.default in words if isinstance(option.default, str) else option.default >= -1

    @pytest.mark.parametrize("count", [1, 2, 9])
    def test_is_a_finite_scalar_with_finite_gradients(self, objective, count):
        outputs = random_outputs(count, heads=objective.heads)
        loss = objective(outputs, self.batch(objective, count))
        loss.backward()
        assert loss.shape == () and loss.isfinite()
        assert all(value.grad.isfinite().all() for value in outputs.values() if value.grad is not None)

    def test_gradient_agrees_with_finite_differences(self, objective):
        names = objective.heads or ("features",)
        outputs = random_outputs(4, heads=objective.heads)
        batch = self.batch(objective, 4)

        def loss(*values):
            return objective({**outputs, **dict(zip(names, values, strict=True))}, batch)

        assert torch.autograd.gradcheck(loss, tuple(outputs[name] for name in names))

    def test_every_parameter_of_its_own_learns(self, objective):
        objective(random_outputs(9, heads=objective.heads), self.batch(objective, 9)).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())

    def test_order_of_the_batch_does_not_matter(self, objective):
        outputs, batch = random_outputs(9, heads=objective.heads), self.batch(objective, 9)
        order = torch.randperm(9)
        shuffled = Batch(
            inputs={name: value[order] for name, value in batch.inputs.items()},
            targets={name: target[order] for name, target in batch.targets.items()},
            labels=batch.labels[order],
            rows=batch.rows[order],
            bank=batch.bank,
        )
        moved = {name: value[order] for name, value in outputs.items()}
        torch.testing.assert_close(objective(moved, shuffled), objective(outputs, batch))

    def test_saved_state_gives_the_same_loss(self, objective):
        outputs, batch = random_outputs(5, heads=objective.heads), self.batch(objective, 5)
        torch.manual_seed(1)
        other = self.make_objective().double()
        other.load_state_dict(objective.state_dict())
        assert torch.equal(other(outputs, batch), objective(outputs, batch))

    def test_evaluation_changes_nothing_and_draws_nothing(self, objective):
        outputs, batch = random_outputs(5, heads=objective.heads), self.batch(objective, 5)
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        random_state = torch.get_rng_state()
        objective.eval()
        with torch.inference_mode():
            assert torch.equal(objective(outputs, batch), objective(outputs, batch))
        assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)

    def test_runs_in_inference_mode_and_float32(self, objective):
        objective.float()
        outputs = {name: value.float() for name, value in random_outputs(5, heads=objective.heads).items()}
        batch = self.batch(objective, 5)
        targets = {name: target.float() for name, target in batch.targets.items()}
        bank = {name: rows.float() for name, rows in batch.bank.items()}
        with torch.inference_mode():
            single = Batch(inputs=batch.inputs, targets=targets, labels=batch.labels, rows=batch.rows, bank=bank)
            assert objective(outputs, single).dtype == torch.float32
