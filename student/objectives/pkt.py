"""Probabilistic knowledge transfer: the student's neighbourhoods follow the teacher's (ECCV 2018)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from student.objectives.base import Batch, Dimensions
from student.objectives.geometry import directions
from student.objectives.shapes import Scalar, Vectors

__all__ = ["ProbabilisticTransfer", "neighbourhoods", "probabilistic_transfer"]

_SMALLEST = 1e-7
"""Of a student's probability in the logarithm: that of exactly opposite vectors is 0."""


class ProbabilisticTransfer(nn.Module):
    """mean_ij P_t(j|i) log(P_t(j|i) / P_s(j|i)); P are cosines, shifted to [0, 1], over their row's sum; no projector.

    A vector's cosine with itself counts too. The paper's code weighs it by 30000: write `pkt:30000`.
    """

    name: ClassVar[str] = "pkt"
    paper: ClassVar[str] = "Passalis and Tefas, ECCV 2018, arXiv 1803.10837"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ()
    bank_rows = 0

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "features" (batch, features) and the target "embedding" (batch, dim)."""
        return probabilistic_transfer(student["features"], batch.dense("embedding"))


def probabilistic_transfer(student: Vectors, teacher: Tensor) -> Scalar:
    """(batch, features), (batch, dim) -> the mean over all pairs of P_t log(P_t / P_s)."""
    p_student, p_teacher = neighbourhoods(student), neighbourhoods(teacher)
    return (torch.xlogy(p_teacher, p_teacher) - p_teacher * p_student.clamp(min=_SMALLEST).log()).mean()


def neighbourhoods(x: Vectors) -> Tensor:
    """(batch, dim) -> (batch, batch): (cosine + 1) / 2 of each pair, each row over its sum."""
    unit = directions(x)
    closeness = ((unit @ unit.T + 1) / 2).clamp(min=0)  # rounding takes a cosine a little below -1
    return closeness / closeness.sum(dim=1, keepdim=True)
