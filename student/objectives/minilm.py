"""MiniLMv2: relations between the queries, between the keys and between the values of a layer (arXiv 2012.15828)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Mask, Scalar, Tokens
from student.objectives.tokens import layer_pair, query_key_value, real_tokens

__all__ = ["MiniLM", "relation_divergence"]

_MOST_HEADS = 48
"""The paper's number."""


class MiniLM(nn.Module):
    """sum over X in {Q, K, V} of KL(R_t || R_s) / (heads * tokens), R = softmax(X X' / sqrt(d)), the mean over samples.

    Q, K and V of the teacher's `layer` and the student's `student_layer` (-1, the default, is the deepest there is) are
    cut into `relation_heads` pieces of width d, whatever the attention heads of the two are. The default 0 stands for
    the largest number up to the paper's 48 that divides both widths. The paper takes an upper middle layer of a large
    teacher, and the last one of a base-sized one.
    """

    name: ClassVar[str] = "minilm"
    paper: ClassVar[str] = "Wang et al., ACL Findings 2021, arXiv 2012.15828"
    needs: tuple[str, ...] = ("qkv.{layer}",)
    heads: tuple[str, ...] = ("qkv.{student_layer}",)
    bank_rows = 0

    def __init__(
        self, dimensions: Dimensions, *, layer: int = -1, student_layer: int = -1, relation_heads: int = 0
    ) -> None:
        super().__init__()
        teacher, student = layer_pair(self.name, "qkv", dimensions, layer=layer, student_layer=student_layer)
        widths = teacher.shape[-1] // 3, student.shape[-1] // 3
        common = [number for number in range(1, min(widths) + 1) if not any(width % number for width in widths)]
        chosen = relation_heads or max(number for number in common if number <= _MOST_HEADS)
        if chosen not in common:
            raise UsageError(
                f"minilm: {relation_heads} relation heads do not divide the teacher's width {widths[0]} and the"
                f" student's {widths[1]}",
                hint=f"relation_heads can be {', '.join(map(str, common))}",
            )
        self.needs, self.heads = (teacher.name,), (student.name,)
        self.relation_heads = chosen

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads the student's layer (batch, tokens, 3 * width), the target (batch, tokens, 3 * dim) and the mask."""
        projections, target = student[self.heads[0]], batch.dense(self.needs[0])
        mask = real_tokens(batch, projections, target)
        return relation_divergence(projections, target, mask, heads=self.relation_heads)


def relation_divergence(student: Tokens, teacher: Tokens, mask: Mask, *, heads: int) -> Scalar:
    """Queries, keys and values (batch, tokens, 3 * width) of both, (batch, tokens) -> the mean over samples of
    sum_X KL(R_t || R_s) / (heads * tokens), over real tokens alone. The widths may differ."""
    lengths = mask.sum(dim=1).clamp(min=1)
    pairs = zip(query_key_value(student, heads), query_key_value(teacher, heads), strict=True)
    total = torch.zeros_like(lengths, dtype=student.dtype)
    for own, target in pairs:
        log_own, log_target = _relations(own, mask), _relations(target, mask)
        divergence = F.kl_div(log_own, log_target, log_target=True, reduction="none").sum(dim=3)
        total = total + torch.where(mask[:, None], divergence, 0).sum(dim=(1, 2))
    return (total / (heads * lengths)).mean()


def _relations(vectors: Tensor, mask: Mask) -> Tensor:
    """(batch, heads, tokens, d) -> log softmax over the real tokens of each with each, (batch, heads, tokens, tokens).

    Padding has a tiny finite number instead of minus infinity, so that no difference of two is NaN.
    """
    scores = vectors @ vectors.transpose(2, 3) / vectors.shape[3] ** 0.5
    return scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min / 4).log_softmax(dim=3)
