"""Correlation with the teacher's probabilities, within each sample and within each class (Huang et al., 2022)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions
from student.objectives.kl import check_temperature
from student.objectives.shapes import Logits, Rows, Scalar
from student.objectives.sparse import dense_logits

__all__ = ["DIST", "correlations", "dist"]

_LEAST_SPREAD = 1e-6
"""Relative to the values themselves: below it what varies are the rounding errors of float32."""


class DIST(nn.Module):
    """T^2 * (beta * (1 - mean_i r(p_s[i, :], p_t[i, :])) + gamma * (1 - mean_c r(p_s[:, c], p_t[:, c]))).

    p = softmax(logits / T) and r is Pearson's correlation: of the classes in each row of the batch, and of the rows in
    each class, which needs batches large enough to correlate over. What does not vary correlates with nothing: r is
    0 there, without a gradient, so of a batch of one row the second part is gamma * T^2.

    The defaults are the paper's for ImageNet: beta = gamma = 1, T = 1 (4 on CIFAR), with a weight of 2 beside
    cross-entropy of weight 1. Sparse logits are refused: correlations within a class need its probability in every row.
    """

    name: ClassVar[str] = "dist"
    paper: ClassVar[str] = "Huang et al., NeurIPS 2022, arXiv 2205.10536"
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    bank_rows = 0

    def __init__(
        self, dimensions: Dimensions, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        check_temperature("dist", temperature)
        if beta < 0 or gamma < 0:
            raise UsageError(f"dist: {beta=}, {gamma=}", hint="both are at least 0")
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "logits" (batch, classes) and the target "logits". Raises UsageError for sparse logits."""
        teacher = dense_logits(batch, "dist")
        return dist(student["logits"], teacher, temperature=self.temperature, beta=self.beta, gamma=self.gamma)


def dist(
    student: Logits, teacher: Logits, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Scalar:
    """(batch, classes), (batch, classes) -> the loss of `DIST`."""
    p_student, p_teacher = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    within_rows = 1 - correlations(p_student, p_teacher).mean()
    within_classes = 1 - correlations(p_student.T, p_teacher.T).mean()
    return temperature**2 * (beta * within_rows + gamma * within_classes)


def correlations(left: Tensor, right: Tensor) -> Rows:
    """(rows, values), (rows, values) -> (rows,): Pearson's correlation of each pair of rows; 0, without a gradient,
    where one of them does not vary."""
    return (_directions(left) * _directions(right)).sum(dim=1)


def _directions(values: Tensor) -> Tensor:
    """Each row less its mean and of length 1; zeros for a row that does not vary."""
    centred = values - values.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    is_constant = length <= _LEAST_SPREAD * torch.linalg.vector_norm(values, dim=1, keepdim=True)
    unit = centred / length.masked_fill(is_constant, 1)  # so that nothing infinite enters the gradient
    return unit.masked_fill(is_constant, 0)
