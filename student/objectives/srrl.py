"""Softmax regression: the student's embedding must satisfy the teacher's own classifier (SRRL, ICLR 2021)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import SparseLogits
from student.objectives.base import Batch, Dimensions

__all__ = ["SRRL"]


class SRRL(nn.Module):
    """MSE(c(f_s), f_t) + MSE(h_t(c(f_s)), z_t): h_t is the teacher's linear classifier, frozen, and c a connector.

    The connector is DAPT's, Linear(s, (s + t) // 2), ReLU, Linear, but without the ReLU behind it: embeddings of
    transformers have negative values, which it could not give. Sparse logits z_t are made dense again as h_t(f_t).
    DAPT weighs it by 1, beside `ce:1`.
    """

    name: ClassVar[str] = "srrl"
    paper: ClassVar[str] = "Yang et al., ICLR 2021, in the form of DAPT, 2024, arXiv 2404.03263"
    needs: ClassVar[tuple[str, ...]] = ("embedding", "logits")
    heads: ClassVar[tuple[str, ...]] = ()
    bank_rows = 0
    weight: Tensor
    bias: Tensor

    def __init__(self, dimensions: Dimensions) -> None:
        """Raises UsageError where the classifier behind the logits is not known, or is one of another embedding."""
        super().__init__()
        features, width = dimensions.features, dimensions.targets["embedding"]
        hint = "add a classifier of the embedding with `fc probe --cache CACHE`"
        if dimensions.classifier is None:
            raise UsageError("srrl needs the classifier behind the teacher's logits, which the cache lacks", hint=hint)
        weight, bias = dimensions.classifier
        if weight.shape != (dimensions.targets["logits"], width):
            raise UsageError(
                f"srrl: the classifier is of shape {tuple(weight.shape)}; the embedding has {width} dimensions",
                hint=hint,
            )
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", bias.clone())
        hidden = (features + width) // 2
        self.connector = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "features" (batch, features), the targets "embedding" (batch, dim) and "logits"."""
        connected, embedding = self.connector(student["features"]), batch.dense("embedding")
        logits = batch.targets["logits"]
        if isinstance(logits, SparseLogits):
            logits = F.linear(embedding, self.weight, self.bias)
        return F.mse_loss(connected, embedding) + F.mse_loss(F.linear(connected, self.weight, self.bias), logits)
