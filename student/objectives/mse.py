"""Squared error between embeddings: FitNets' hint loss on the pooled output (Romero et al., ICLR 2015)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from student.objectives.base import Batch, Dimensions

__all__ = ["MeanSquaredError"]


class MeanSquaredError(nn.Module):
    """The mean over batch and dimensions of (student - teacher)^2; its size follows the teacher's own scale."""

    name: ClassVar[str] = "mse"
    paper: ClassVar[str] = "Romero et al., ICLR 2015, arXiv 1412.6550"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ("embedding",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "embedding" and the target "embedding", both (batch, dim)."""
        return F.mse_loss(student["embedding"], batch.dense("embedding"))
