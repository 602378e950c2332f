"""Cross-entropy with the true labels (Szegedy et al., CVPR 2016, arXiv 1512.00567, for the smoothing)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Labels, Logits, Scalar

__all__ = ["CrossEntropy", "cross_entropy"]


class CrossEntropy(nn.Module):
    """-log p(label), the mean over the rows of the batch that have a label; exactly 0 where none has.

    With label_smoothing e (default 0) the target is 1 - e on the label and e / classes everywhere. Of samples that are
    mixed with others, both labels count by their shares, as in mixup (arXiv 1710.09412).
    """

    name: ClassVar[str] = "ce"
    paper: ClassVar[str] = "Szegedy et al., CVPR 2016, arXiv 1512.00567"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    heads: ClassVar[tuple[str, ...]] = ("labels",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"ce: label_smoothing is {label_smoothing}", hint="choose one from 0 to below 1")
        self.label_smoothing = label_smoothing

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "labels" (batch, classes), batch.labels (batch,) and batch.mix."""
        logits, mix = student["labels"], batch.mix
        if mix is None:
            return cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        own, other = (
            F.cross_entropy(
                logits, labels, ignore_index=NO_LABEL, reduction="none", label_smoothing=self.label_smoothing
            )
            for labels in (batch.labels, mix.labels)
        )
        labelled = batch.labels != NO_LABEL
        return ((mix.share * own + (1 - mix.share) * other) * labelled).sum() / labelled.sum().clamp(min=1)


def cross_entropy(logits: Logits, labels: Labels, *, label_smoothing: float = 0.0) -> Scalar:
    """(batch, classes), (batch,) -> the mean over rows whose label is not NO_LABEL."""
    total = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum", label_smoothing=label_smoothing)
    return total / (labels != NO_LABEL).sum().clamp(min=1)  # a sum, because torch's mean over no rows is NaN
