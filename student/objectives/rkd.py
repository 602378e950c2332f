"""Relational distillation: distances and angles between samples, not the vectors themselves (RKD, CVPR 2019)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions
from student.objectives.geometry import directions, distances
from student.objectives.shapes import Scalar, Vectors

__all__ = ["RelationalDistillation", "angle_difference", "distance_difference"]


class RelationalDistillation(nn.Module):
    """distance * SmoothL1(D_s, D_t) + angle * SmoothL1(A_s, A_t), both means over all pairs and triples; no projector.

    D_ij is ||f_i - f_j|| over the mean of those above 0; A_ijk the cosine of the angle at i between j and k, 0 where
    two of them coincide. The paper's weights, 25 and 50, are the defaults: write `rkd:1`. The angles cost batch^3, so
    they are those of the first `most` samples of the batch (default 64), which is shuffled.
    """

    name: ClassVar[str] = "rkd"
    paper: ClassVar[str] = "Park et al., CVPR 2019, arXiv 1904.05068"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ()
    bank_rows = 0

    def __init__(self, dimensions: Dimensions, *, distance: float = 25.0, angle: float = 50.0, most: int = 64) -> None:
        super().__init__()
        if distance < 0 or angle < 0 or most < 3:
            raise UsageError(
                f"rkd: {distance=}, {angle=}, {most=}",
                hint="the weights are at least 0; an angle needs 3 samples, so most is at least 3",
            )
        self.distance, self.angle, self.most = distance, angle, most

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "features" (batch, features) and the target "embedding" (batch, dim)."""
        s, t = student["features"], batch.dense("embedding")
        angles = angle_difference(s[: self.most], t[: self.most])
        return self.distance * distance_difference(s, t) + self.angle * angles


def distance_difference(student: Vectors, teacher: Tensor) -> Scalar:
    """(batch, features), (batch, dim) -> SmoothL1 of relative distances, the mean over all batch^2 ordered pairs."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def angle_difference(student: Vectors, teacher: Tensor) -> Scalar:
    """(batch, features), (batch, dim) -> SmoothL1 of the cosines of angles, the mean over all batch^3 triples."""
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _relative_distances(x: Tensor) -> Tensor:
    apart = distances(x)
    total, pairs = apart.sum(), (apart > 0).sum().clamp(min=1)
    return apart * pairs / torch.where(total > 0, total, 1.0)


def _angles(x: Tensor) -> Tensor:
    """(batch, dim) -> (batch, batch, batch): the cosine of the angle at i between j and k."""
    towards = directions(x[None, :] - x[:, None])
    return towards @ towards.transpose(1, 2)
