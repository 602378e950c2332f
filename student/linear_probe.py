"""A linear classifier on frozen features: how a probe is fitted, and how features are judged."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.errors import UsageError

__all__ = ["LinearProbe", "fit_linear_probe"]

_BATCH = 4096
_CONSTANT = 1e-6
"""Standard deviation up to which a dimension is rounding."""
_CHECK_EVERY = 10
_PATIENCE = 100
"""Steps without a better validation loss before fitting stops."""
_MOST_STEPS = 2000


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """logits = features @ weight.T + bias."""

    weight: Tensor
    """float32 (classes, dim)."""
    bias: Tensor
    """float32 (classes,)."""
    validation_accuracy: float
    """On the validation rows, while they were not fitted on."""
    steps: int

    def __call__(self, features: Tensor) -> Tensor:
        """float (rows, dim) -> logits float32 (rows, classes)."""
        return torch.addmm(self.bias, features.float(), self.weight.T)


def fit_linear_probe(
    features: Tensor, labels: np.ndarray, validation: np.ndarray, *, classes: int, seed: int = 0
) -> LinearProbe:
    """Multinomial logistic regression by AdamW on standardised features; stopping early is its regularisation.

    `features` is float (rows, dim), `labels` int (rows,), `validation` bool (rows,). The number of steps is the one
    with the smallest loss on the validation rows; then the probe is fitted anew on all rows, for as many steps.
    Raises UsageError if there is nothing to fit on or nothing to validate on.
    """
    if validation.all() or not validation.any():
        message = (
            f"a probe needs labels to fit on and to validate on: there are {(~validation).sum()} and {validation.sum()}"
        )
        raise UsageError(message, hint="give it more labels")
    targets = torch.from_numpy(labels.astype(np.int64))
    mean, std = features.float().mean(0), features.float().std(0)
    std = torch.where(std > _CONSTANT, std, torch.inf)  # a constant says nothing, and has no weight elsewhere either
    scaled = (features.float() - mean) / std
    held_out = torch.from_numpy(validation)
    steps, accuracy = _best_steps(
        scaled[~held_out], targets[~held_out], scaled[held_out], targets[held_out], classes=classes, seed=seed
    )
    *_, (_, weight, bias) = _descend(scaled, targets, classes=classes, seed=seed, steps=steps)
    weight = weight / std
    return LinearProbe(weight, bias - weight @ mean, accuracy, steps)


def _best_steps(
    x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor, *, classes: int, seed: int
) -> tuple[int, float]:
    best_loss, best_steps, best_accuracy = float("inf"), _CHECK_EVERY, 0.0
    for step, weight, bias in _descend(x, y, classes=classes, seed=seed, steps=_MOST_STEPS):
        if step % _CHECK_EVERY:
            continue
        logits = torch.addmm(bias, x_held_out, weight.T)
        loss = float(F.cross_entropy(logits, y_held_out))
        if loss < best_loss:
            best_loss, best_steps = loss, step
            best_accuracy = float((logits.argmax(1) == y_held_out).float().mean())
        elif step - best_steps >= _PATIENCE:
            break
    return best_steps, best_accuracy


def _descend(x: Tensor, y: Tensor, *, classes: int, seed: int, steps: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (step, weight, bias) after each step of AdamW; the tensors are the ones being optimised."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(classes, x.shape[1], generator=generator) * 1e-3).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=2e-3, weight_decay=1e-3)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(x), (_BATCH,), generator=generator) if len(x) > _BATCH else slice(None)
        with torch.enable_grad():
            loss = F.cross_entropy(torch.addmm(bias, x[chosen], weight.T), y[chosen])
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        yield step, weight.detach(), bias.detach()
