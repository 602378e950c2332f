"""Variance, invariance, covariance: agreement that cannot collapse, without negatives (VICReg, ICLR 2022)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Scalar, Vectors

__all__ = ["VICReg", "covariance_penalty", "variance_penalty"]


class VICReg(nn.Module):
    """invariance * MSE(x, y) + variance / 2 * (V(x) + V(y)) + covariance * (C(x) + C(y)); 25, 25 and 1 as in the paper.

    V(x) = mean_j relu(1 - sqrt(Var(x_j) + 1e-4)), C(x) = sum_{i != j} Cov(x)_ij^2 / dim; both are 0 for one sample.
    x and y are student features and teacher embedding, each through a trained expander of three layers, `expander`
    wide. The paper's is 8192 wide; the default of 512 suits a small student and its small batches.
    Between its layers stand layer norms where the paper has batch norms: any batch will do, and none leaves a trace.

    With expander=0, x is a linear map of the features to the teacher's width and y the embedding as it is; V and C are
    then of x alone. V asks for a deviation of 1, which suits embeddings whose dimensions have about that.
    """

    name: ClassVar[str] = "vicreg"
    paper: ClassVar[str] = "Bardes, Ponce and LeCun, ICLR 2022, arXiv 2105.04906"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ()
    bank_rows = 0

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        expander: int = 512,
    ) -> None:
        super().__init__()
        if min(invariance, variance, covariance, expander) < 0 or expander == 1:
            raise UsageError(
                f"vicreg: {invariance=}, {variance=}, {covariance=}, {expander=}",
                hint="the weights are at least 0, expander is 0 or at least 2",
            )
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        width = dimensions.targets["embedding"]
        self.student_expander = (
            _expander(dimensions.features, expander) if expander else nn.Linear(dimensions.features, width)
        )
        self.teacher_expander = _expander(width, expander) if expander else None

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "features" (batch, features) and the target "embedding" (batch, dim)."""
        x, y = self.student_expander(student["features"]), batch.dense("embedding")
        trained = [x]
        if self.teacher_expander is not None:
            y = self.teacher_expander(y)
            trained.append(y)
        spread = torch.stack([variance_penalty(side) for side in trained]).sum()
        correlated = torch.stack([covariance_penalty(side) for side in trained]).sum()
        return self.invariance * F.mse_loss(x, y) + self.variance / 2 * spread + self.covariance * correlated


def variance_penalty(x: Vectors) -> Scalar:
    """(batch, dim) -> how far the dimensions' standard deviations are below 1, the mean; 0 for a single row."""
    if len(x) < 2:
        return x.sum() * 0  # there is no deviation, but there is a graph
    return F.relu(1 - (x.var(dim=0) + 1e-4).sqrt()).mean()


def covariance_penalty(x: Vectors) -> Scalar:
    """(batch, dim) -> the squared covariances of different dimensions, summed, over dim; 0 for a single row."""
    count, dim = x.shape
    if count < 2:
        return x.sum() * 0
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / (count - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / dim


def _expander(width: int, out: int) -> nn.Sequential:
    """(batch, width) -> (batch, out)."""
    return nn.Sequential(
        nn.Linear(width, out),
        nn.LayerNorm(out),
        nn.ReLU(),
        nn.Linear(out, out),
        nn.LayerNorm(out),
        nn.ReLU(),
        nn.Linear(out, out),
    )
