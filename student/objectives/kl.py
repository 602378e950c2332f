"""Knowledge distillation: KL divergence from the teacher's tempered class probabilities (Hinton et al., 2015)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL, SparseLogits
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Logits, Scalar
from student.objectives.sparse import Rest, dense_logits, sparse_kl_divergence

__all__ = ["KLDivergence", "check_temperature", "kl_divergence", "standardised"]

_LEAST_VARIANCE = 1e-12
_BIASED = (
    "kl(rest=renormalise) is biased where logits are sparse: the student learns to be surer of the stored classes than "
    "the teacher is; rest=bucket is not"
)


class KLDivergence(nn.Module):
    """T^2 * mean_i KL(p_t || p_s) with p = softmax(logits / T); T^2 keeps the gradient's size independent of T.

    The default T = 4 is that of RepDistiller and DAPT (arXiv 1910.10699, 2404.03263); T = 1 is the loss of
    Pre-trained Distillation (arXiv 1908.08962). With standardise=1 each row's logits are first brought to mean 0 and
    standard deviation 1, the student's and the teacher's, so that only their shape is learned (Sun et al., CVPR 2024,
    arXiv 2403.01265, with T = 2 and a weight of 9); dense logits only.

    `rest` says where the probability r of the classes is that top-k logits leave out:

    * bucket: all of them are one class, whose probability the student must match; they are not told apart.
    * uniform: each has r / (classes - k). Good where classes are few.
    * label: r is added to the row's true class, whether it is stored or not (of mixed samples to both, by their
      shares); a row without a label falls back to the bucket.
    * renormalise: they have none, and the stored ones are divided by 1 - r. It is biased: its optimum is t / sum(t),
      which is surer than the teacher (arXiv 2503.16870).

    Dense logits have no rest, nor have sampled ones, whose estimates are unbiased (arXiv 2503.16870).
    """

    name: ClassVar[str] = "kl"
    paper: ClassVar[str] = (
        "Hinton, Vinyals and Dean, NIPS workshop 2014, arXiv 1503.02531; standardise: Sun et al., CVPR 2024, "
        "arXiv 2403.01265"
    )
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    bank_rows = 0

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        temperature: float = 4.0,
        standardise: bool = False,
        rest: Rest = "bucket",
    ) -> None:
        super().__init__()
        check_temperature("kl", temperature)
        if rest == "label":
            _check_labels(dimensions)
        self.temperature, self.standardise, self.rest = temperature, standardise, rest
        self.notes = (_BIASED,) if rest == "renormalise" else ()

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "logits" (batch, classes) and the target "logits", dense or sparse; for rest=label batch.labels
        and batch.mix. Raises UsageError for sparse logits that cannot serve."""
        logits, teacher = student["logits"], batch.targets["logits"]
        if self.standardise:
            logits, teacher = standardised(logits), standardised(dense_logits(batch, "kl(standardise=1)"))
        if isinstance(teacher, SparseLogits):
            return sparse_kl_divergence(
                logits, teacher, temperature=self.temperature, rest=self.rest, labels=batch.labels, mix=batch.mix
            )
        return kl_divergence(logits, teacher, temperature=self.temperature)


def kl_divergence(student: Logits, teacher: Logits, *, temperature: float = 1.0) -> Scalar:
    """(batch, classes), (batch, classes) -> T^2 * mean_i KL(p_t || p_s), summed over classes."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


def standardised(logits: Logits) -> Logits:
    """(batch, classes) -> each row less its mean, divided by its standard deviation (that of all its classes, not of a
    sample). A row that is constant becomes 0."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=1, keepdim=True).clamp(min=_LEAST_VARIANCE).sqrt()


def check_temperature(name: str, temperature: float) -> None:
    """Raises UsageError for a temperature that no softmax can have."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"{name}: temperature is {temperature}", hint="choose one above 0; 1 to 4 are usual")


def _check_labels(dimensions: Dimensions) -> None:
    dimensions.check_classes("kl(rest=label)")
    if dimensions.labels is not None and bool(torch.all(dimensions.labels == NO_LABEL)):
        raise UsageError("kl(rest=label) needs labels", hint="give data that has labels with `--data`, or rest=bucket")
