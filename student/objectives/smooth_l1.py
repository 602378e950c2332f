"""Squared error that grows only linearly for what is far off: Huber's loss on embeddings (Girshick, ICCV 2015)."""

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions

__all__ = ["SmoothL1"]


class SmoothL1(nn.Module):
    """The mean over batch and dimensions of d^2 / (2 beta) where d = |student - teacher| < beta, else d - beta / 2.

    The default beta is 1. Theia (arXiv 2407.20179) mixes it as `cosine:0.9,smooth-l1:0.1`, UNIC in equal parts.
    """

    name: ClassVar[str] = "smooth-l1"
    paper: ClassVar[str] = "Girshick, ICCV 2015, arXiv 1504.08083"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ("embedding",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions, *, beta: float = 1.0) -> None:
        super().__init__()
        if not 0 <= beta < math.inf:
            raise UsageError(f"smooth-l1: beta is {beta}", hint="choose one of at least 0; 0 is the absolute error")
        self.beta = beta

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "embedding" and the target "embedding", both (batch, dim)."""
        return F.smooth_l1_loss(student["embedding"], batch.dense("embedding"), beta=self.beta)
