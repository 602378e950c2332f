"""Similarity-preserving distillation: samples that are alike to the teacher are alike to the student (ICCV 2019)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from student.objectives.base import Batch, Dimensions
from student.objectives.geometry import directions
from student.objectives.shapes import Scalar, Vectors

__all__ = ["SimilarityPreserving", "similarity_preserving"]


class SimilarityPreserving(nn.Module):
    """||G_s - G_t||_F^2 / batch^2, where G = F F^T with its rows scaled to length 1; no projector.

    The paper weighs it by 3000: write `sp:3000`.
    """

    name: ClassVar[str] = "sp"
    paper: ClassVar[str] = "Tung and Mori, ICCV 2019, arXiv 1907.09682"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ()
    bank_rows = 0

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "features" (batch, features) and the target "embedding" (batch, dim)."""
        return similarity_preserving(student["features"], batch.dense("embedding"))


def similarity_preserving(student: Vectors, teacher: Tensor) -> Scalar:
    """(batch, features), (batch, dim) -> the mean squared difference of their row-normalised Gram matrices."""
    return (directions(student @ student.T) - directions(teacher @ teacher.T)).square().mean()
