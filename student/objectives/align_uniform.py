"""Alignment and uniformity on the sphere (Wang and Isola, ICML 2020), as DAPT distils with it (arXiv 2404.03263)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Scalar, Vectors

__all__ = ["AlignUniform", "Projector", "alignment", "uniformity"]


class AlignUniform(nn.Module):
    """align * A(u, v) + uniform * (U(u) + U(v)) / 2; u, v are the projected student features and teacher embeddings.

    Both projectors are trained, so the cache holds the teacher's embedding itself. The defaults are DAPT's:
    alpha = t = 2, both weights 1, 128 projected dimensions.
    """

    name: ClassVar[str] = "align-uniform"
    paper: ClassVar[str] = "Farhat and Chen, ICLR workshop PML4LRS 2024, arXiv 2404.03263"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ()
    bank_rows = 0

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        alpha: float = 2.0,
        t: float = 2.0,
        align: float = 1.0,
        uniform: float = 1.0,
        projection: int = 128,
    ) -> None:
        super().__init__()
        if alpha < 1 or t <= 0 or align < 0 or uniform < 0 or projection < 2:
            raise UsageError(
                f"align-uniform: {alpha=}, {t=}, {align=}, {uniform=}, {projection=}",
                hint="alpha is at least 1, t above 0, the weights at least 0, projection at least 2",
            )
        self.alpha, self.t, self.align, self.uniform = alpha, t, align, uniform
        self.student_projector = Projector(dimensions.features, projection)
        self.teacher_projector = Projector(dimensions.targets["embedding"], projection)

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "features" (batch, features) and the target "embedding" (batch, dim)."""
        u = self.student_projector(student["features"])
        v = self.teacher_projector(batch.dense("embedding"))
        spread = (uniformity(u, t=self.t) + uniformity(v, t=self.t)) / 2
        return self.align * alignment(u, v, alpha=self.alpha) + self.uniform * spread


class Projector(nn.Module):
    """(batch, width) -> unit vectors (batch, out): Linear(width, width), ReLU, Linear(width, out), as in MoCo v2."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, out)

    def forward(self, features: Tensor) -> Tensor:
        """Unit vectors (batch, out)."""
        unit: Tensor = F.normalize(self.out(F.relu(self.hidden(features))), dim=1)
        return unit


def alignment(u: Vectors, v: Vectors, *, alpha: float = 2.0) -> Scalar:
    """Unit vectors (batch, dim) of the same samples -> mean_i ||u_i - v_i||^alpha: 0 when identical, 2 at random."""
    distances: Tensor = torch.linalg.vector_norm(u - v, dim=1)
    return distances.pow(alpha).mean()


def uniformity(x: Vectors, *, t: float = 2.0) -> Scalar:
    """Unit vectors (batch, dim) -> log mean_{i<j} exp(-t ||x_i - x_j||^2), 0 when collapsed; 0 for a single vector.

    Points spread evenly over a sphere of many dimensions give about -2t + 2t^2 / dim: -3.94 at t = 2, dim = 128.
    """
    count = len(x)
    if count < 2:
        return x.sum() * 0  # there is no pair, but there is a graph
    exponents = 2 * t * (x @ x.T - 1)  # ||a - b||^2 = 2 - 2ab on the sphere
    itself = torch.eye(count, dtype=torch.bool, device=x.device)
    return exponents.masked_fill(itself, -math.inf).flatten().logsumexp(dim=0) - math.log(count * (count - 1))
