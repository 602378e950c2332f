"""Contrastive distillation: each student embedding must find its own teacher embedding among others (InfoNCE)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Labels, Pairs

__all__ = ["InfoNCE", "repeated_rows", "same_class"]

_LARGEST_LOG_SCALE = math.log(100)  # CLIP's bound: beyond it training becomes unstable


class InfoNCE(nn.Module):
    """Softmax cross-entropy of S_ij = cos(student_i, teacher_j) / temperature towards the diagonal, as in CLIP.

    The student's side chooses among the teacher embeddings of the batch and `negatives` further rows of the cache
    (default 0); with symmetric=1 (default) the teacher's side chooses among the batch's students too, and the loss is
    the mean of both. The temperature starts at 0.07 and is learned, never below 0.01. Other views of the same sample
    are no negatives, nor, with mask_same_class=1 (default 0), are samples known to be of the same class.
    """

    name: ClassVar[str] = "infonce"
    paper: ClassVar[str] = (
        "van den Oord et al. 2018, arXiv 1807.03748; in the form of CLIP, ICML 2021, arXiv 2103.00020"
    )
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ("embedding",)

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        negatives: int = 0,
        temperature: float = 0.07,
        symmetric: bool = True,
        mask_same_class: bool = False,
    ) -> None:
        super().__init__()
        if negatives < 0 or not 0.01 <= temperature < math.inf:
            raise UsageError(
                f"infonce: {negatives=}, {temperature=}", hint="negatives is at least 0, temperature at least 0.01"
            )
        self.bank_rows = negatives
        self.symmetric, self.mask_same_class = symmetric, mask_same_class
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "embedding" and target "embedding" (batch, dim), and the bank's (rows, dim) if there is one."""
        u, v = F.normalize(student["embedding"], dim=1), F.normalize(batch.dense("embedding"), dim=1)
        u = u * self._scale()
        own = torch.arange(len(u), device=u.device)
        hidden = repeated_rows(batch.rows)
        if self.mask_same_class:
            hidden |= same_class(batch.labels, batch.labels).fill_diagonal_(False)
        similarity = (u @ v.T).masked_fill(hidden, -math.inf)
        choices = similarity
        if self.bank_rows and batch.bank:  # a validation batch may come without
            further = u @ F.normalize(batch.bank["embedding"][: self.bank_rows], dim=1).T  # another may want more
            if self.mask_same_class and batch.bank_labels is not None:
                hidden = same_class(batch.labels, batch.bank_labels[: self.bank_rows])
                further = further.masked_fill(hidden, -math.inf)
            choices = torch.cat([similarity, further], dim=1)
        loss = F.cross_entropy(choices, own)
        return (loss + F.cross_entropy(similarity.T, own)) / 2 if self.symmetric else loss

    def _scale(self) -> Tensor:
        with torch.no_grad():  # the parameter itself: a clamp in the graph would hold it at the bound for ever
            self.log_scale.clamp_(max=_LARGEST_LOG_SCALE)
        return self.log_scale.exp()


def repeated_rows(rows: Labels) -> Pairs:
    """Row numbers (batch,) -> (batch, batch), true where two different places of the batch hold the same sample."""
    return (rows[:, None] == rows[None, :]).fill_diagonal_(False)


def same_class(labels: Tensor, others: Tensor) -> Tensor:
    """Labels (batch,), (others,) -> bool (batch, others), true where both are known and equal."""
    return (labels[:, None] == others[None, :]) & (labels != NO_LABEL)[:, None]
