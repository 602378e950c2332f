"""Knowledge distillation: KL divergence from the teacher's tempered class probabilities (Hinton et al., 2015)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import SparseLogits
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Logits, Scalar

__all__ = ["KLDivergence", "kl_divergence", "sparse_kl_divergence"]


class KLDivergence(nn.Module):
    """T^2 * mean_i KL(p_t || p_s) with p = softmax(logits / T); T^2 keeps the gradient's size independent of T.

    The default T = 4 is that of RepDistiller and DAPT (arXiv 1910.10699, 2404.03263); T = 1 is the loss of
    Pre-trained Distillation (arXiv 1908.08962).
    """

    name: ClassVar[str] = "kl"
    paper: ClassVar[str] = "Hinton, Vinyals and Dean, NIPS workshop 2014, arXiv 1503.02531"
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions, *, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UsageError(f"kl: temperature is {temperature}", hint="choose one above 0; 1 to 4 are usual")
        self.temperature = temperature

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "logits" (batch, classes) and the target "logits", dense or sparse."""
        return self.between(student["logits"], batch.targets["logits"])

    def between(self, student: Tensor, teacher: Tensor | SparseLogits) -> Tensor:
        """The same of logits (batch, classes) themselves."""
        if isinstance(teacher, SparseLogits):
            return sparse_kl_divergence(student, teacher, temperature=self.temperature)
        return kl_divergence(student, teacher, temperature=self.temperature)


def kl_divergence(student: Logits, teacher: Logits, *, temperature: float = 1.0) -> Scalar:
    """(batch, classes), (batch, classes) -> T^2 * mean_i KL(p_t || p_s), summed over classes."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


def sparse_kl_divergence(student: Logits, teacher: SparseLogits, *, temperature: float = 1.0) -> Scalar:
    """The same over the k stored classes and one bucket for all others, which is never more than the dense KL.

    The teacher's probabilities are exact: exp(value / T - logsumexp_T), with the logsumexp stored at that T. Raises
    UsageError where it was not stored.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = teacher.values.to(student.dtype) / temperature - _logsumexp(teacher, temperature).to(student.dtype)
    log_mass = log_teacher.logsumexp(dim=1, keepdim=True)
    log_teacher = log_teacher - log_mass.clamp(min=0)  # rounded values may add up to a little more than 1
    divergence = (log_teacher.exp() * (log_teacher - log_student.gather(1, teacher.indices))).sum(dim=1)
    if teacher.indices.shape[1] < teacher.size:
        rest = -torch.expm1(log_mass.clamp(max=0)).squeeze(1)
        # from the other classes themselves: 1 - (mass of the stored ones) has no digits left once it is tiny
        log_student_rest = log_student.scatter(1, teacher.indices, -math.inf).logsumexp(dim=1)
        divergence = divergence + torch.xlogy(rest, rest) - rest * log_student_rest
    return temperature**2 * divergence.mean()


def _logsumexp(teacher: SparseLogits, temperature: float) -> Tensor:
    """The column (batch, 1) that was stored at this temperature."""
    if temperature not in teacher.temperatures:
        stored = ", ".join(f"{number:g}" for number in teacher.temperatures) or "none"
        wanted = ",".join(f"{number:g}" for number in (*teacher.temperatures, temperature))
        choices = [f"use kl(temperature={number:g})" for number in teacher.temperatures[:1]]
        raise UsageError(
            f"kl: the cache's sparse logits have no logsumexp at temperature {temperature:g}; stored: {stored}",
            hint=", or ".join([*choices, f"extract again with `--temperatures {wanted}`"]),
        )
    column = teacher.temperatures.index(temperature)
    return teacher.logsumexp[:, column : column + 1]
