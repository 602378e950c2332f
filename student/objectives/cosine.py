"""Cosine distance between embeddings (as in AM-RADIO, arXiv 2312.06709, and Theia, arXiv 2407.20179)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Scalar, Vectors

__all__ = ["Cosine", "cosine_distance"]


class Cosine(nn.Module):
    """mean_i (1 - cos(student_i, teacher_i)): direction alone counts, length does not."""

    name: ClassVar[str] = "cosine"
    paper: ClassVar[str] = "Ranzinger et al., CVPR 2024, arXiv 2312.06709"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ("embedding",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "embedding" and the target "embedding", both (batch, dim)."""
        return cosine_distance(student["embedding"], batch.dense("embedding"))


def cosine_distance(student: Vectors, teacher: Vectors) -> Scalar:
    """(batch, dim), (batch, dim) -> the mean of 1 - cos, from 0 to 2."""
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()
