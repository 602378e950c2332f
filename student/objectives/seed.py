"""Self-supervised distillation: the student sees the same neighbours among cached rows as the teacher (SEED)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions
from student.objectives.geometry import directions

__all__ = ["SEED"]


class SEED(nn.Module):
    """mean_i of -sum_j q_t(j) log q_s(j), over j in [its own teacher embedding, `negatives` rows of the cache].

    q_t is the softmax of cos(teacher_i, j) / teacher_temperature, q_s that of cos(student_i, j) / temperature. The
    paper keeps a queue of 65536 past batches; here each step draws other rows of the cache (default 1024), which are
    never stale. Without them, in validation or with negatives=0, the batch's other teacher embeddings take their place.

    temperature=0.2 is the paper's. For teacher_temperature the paper's code has 1e-4, at which q_t is all on the
    sample itself unless a neighbour is nearer than a cosine of 0.999, so that nothing is left but InfoNCE; at the
    default, 0.01, a neighbour at a cosine of 0.99 counts a third of the sample itself.
    """

    name: ClassVar[str] = "seed"
    paper: ClassVar[str] = "Fang et al., ICLR 2021, arXiv 2101.04731"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ("embedding",)

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        negatives: int = 1024,
        temperature: float = 0.2,
        teacher_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if negatives < 0 or not (0 < temperature < math.inf and 0 < teacher_temperature < math.inf):
            raise UsageError(
                f"seed: {negatives=}, {temperature=}, {teacher_temperature=}",
                hint="negatives is at least 0, the temperatures above 0",
            )
        self.bank_rows = negatives
        self.temperature, self.teacher_temperature = temperature, teacher_temperature

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "embedding" and target "embedding" (batch, dim), and the bank's (rows, dim) if there is one."""
        u, v = directions(student["embedding"]), directions(batch.dense("embedding"))
        others = directions(batch.bank["embedding"][: self.bank_rows]) if self.bank_rows and batch.bank else None
        target = (_choices(v, v, others) / self.teacher_temperature).softmax(dim=1)
        return F.cross_entropy(_choices(u, v, others) / self.temperature, target)


def _choices(x: Tensor, own: Tensor, others: Tensor | None) -> Tensor:
    """Cosines (batch, choices) of unit vectors with their own partner and the others, or, without others, all `own`."""
    if others is None:
        return x @ own.T
    return torch.cat([(x * own).sum(dim=1, keepdim=True), x @ others.T], dim=1)
