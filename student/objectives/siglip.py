"""Contrastive distillation pair by pair: each student-teacher pair is of one sample or not (SigLIP, ICCV 2023)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.objectives.base import Batch, Dimensions
from student.objectives.geometry import directions
from student.objectives.infonce import repeated_rows

__all__ = ["SigLIP"]


class SigLIP(nn.Module):
    """-1 / batch * sum_ij log sigmoid(y_ij (e^s cos(student_i, teacher_j) + b)); y is 1 on the diagonal, else -1.

    Scale and bias are learned and start at the paper's s = ln 10, b = -10, where a batch's many negatives weigh little.
    Pairs of different views of the same sample are neither and are left out.
    """

    name: ClassVar[str] = "siglip"
    paper: ClassVar[str] = "Zhai et al., ICCV 2023, arXiv 2303.15343"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ("embedding",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "embedding" and the target "embedding", both (batch, dim)."""
        cosines = directions(student["embedding"]) @ directions(batch.dense("embedding")).T
        logits = self.log_scale.exp() * cosines + self.bias
        signs = 2 * torch.eye(len(cosines), dtype=cosines.dtype, device=cosines.device) - 1
        losses = -F.logsigmoid(signs * logits)
        return losses.masked_fill(repeated_rows(batch.rows), 0).sum() / len(cosines)
