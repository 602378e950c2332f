"""Decoupled knowledge distillation: the target class and the others, weighed apart (Zhao et al., CVPR 2022)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.objectives.base import Batch, Dimensions
from student.objectives.kl import check_temperature, standardised
from student.objectives.shapes import Labels, Logits, Rows
from student.objectives.sparse import dense_logits

__all__ = ["DecoupledKD", "decoupled_kd"]


class DecoupledKD(nn.Module):
    """T^2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s)), the mean over the rows that have a label.

    With p = softmax(logits / T) and the true class y, which must be one of the teacher's: b = (p_y, 1 - p_y), and q is
    the softmax over all classes but y, computed without y rather than with a large number taken from its logit. Plain
    KL would be the first part and 1 - p_t,y times the second. Rows without a label have no target class and are left
    out; where no row has one it is exactly 0. Of samples that are mixed with others both labels count by their shares.

    The defaults are the paper's: T = 4, alpha = 1, beta = 8, beside cross-entropy of weight 1. Its linear warm-up of
    the term over 20 epochs is left out. With standardise=1 logits are standardised first, as in `kl`.
    """

    name: ClassVar[str] = "dkd"
    paper: ClassVar[str] = "Zhao et al., CVPR 2022, arXiv 2203.08679"
    needs: ClassVar[tuple[str, ...]] = ("logits", "labels")
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    bank_rows = 0

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        standardise: bool = False,
    ) -> None:
        """Raises UsageError for impossible options, and where labels are no classes of the teacher."""
        super().__init__()
        check_temperature("dkd", temperature)
        if alpha < 0 or beta < 0:
            raise UsageError(f"dkd: {alpha=}, {beta=}", hint="both are at least 0")
        dimensions.check_classes("dkd")
        if dimensions.targets["logits"] < 2:
            raise UsageError("dkd needs logits of at least two classes")
        self.temperature, self.alpha, self.beta, self.standardise = temperature, alpha, beta, standardise

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "logits" (batch, classes), the target "logits", batch.labels (batch,) and batch.mix. Raises
        UsageError for sparse logits."""
        logits, teacher = student["logits"], dense_logits(batch, "dkd")
        if self.standardise:
            logits, teacher = standardised(logits), standardised(teacher)
        options = {"temperature": self.temperature, "alpha": self.alpha, "beta": self.beta}
        each = decoupled_kd(logits, teacher, batch.labels, **options)
        if (mix := batch.mix) is not None:
            other = decoupled_kd(logits, teacher, mix.labels, **options)
            each = (mix.share * each + (1 - mix.share) * other) * (batch.labels != NO_LABEL)
        return each.sum() / (batch.labels != NO_LABEL).sum().clamp(min=1)


def decoupled_kd(
    student: Logits, teacher: Logits, labels: Labels, *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0
) -> Rows:
    """(batch, classes), (batch, classes), (batch,) -> (batch,): the loss of each row, 0 where its label is NO_LABEL."""
    target = labels.clamp(min=0)[:, None]
    is_target = torch.zeros_like(student, dtype=torch.bool).scatter(1, target, True)
    binary_student, others_student = _decoupled(student / temperature, target, is_target)
    binary_teacher, others_teacher = _decoupled(teacher / temperature, target, is_target)
    of_target = (binary_teacher.exp() * (binary_teacher - binary_student)).sum(dim=1)
    # the target's own place counts nothing: its probability among the others is 0
    of_others = (others_teacher.exp() * (others_teacher - others_student)).masked_fill(is_target, 0).sum(dim=1)
    return temperature**2 * (alpha * of_target + beta * of_others) * (labels != NO_LABEL)


def _decoupled(logits: Tensor, target: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target and non-target, (batch, 2), and of each class among the others, (batch, classes),
    where the target's place holds 0."""
    log_all = F.log_softmax(logits, dim=1)
    without = logits.masked_fill(is_target, -math.inf)
    log_rest = log_all.masked_fill(is_target, -math.inf).logsumexp(dim=1, keepdim=True)
    binary = torch.cat([log_all.gather(1, target), log_rest], dim=1)
    return binary, F.log_softmax(without, dim=1).masked_fill(is_target, 0)
