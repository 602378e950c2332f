"""Attention scores, head by head: TinyBERT's attention loss (Jiang et al., EMNLP Findings 2020, arXiv 1909.10351)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from featurecache.errors import UsageError
from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Mask, Scalar, Tokens
from student.objectives.tokens import layer_pair, query_key_value, real_tokens

__all__ = ["AttentionScores", "attention_error"]


class AttentionScores(nn.Module):
    """The mean of (S_s - S_t)^2 over heads and pairs of real tokens, S = q k / sqrt(d_head) before the softmax.

    Scores are those of the teacher's `layer` and the student's `student_layer`; -1 (default) is the deepest there is.
    Both need equally many heads. Pairs with padding are left out: TinyBERT sets them to 0 on both sides, and counts
    them in the mean.
    """

    name: ClassVar[str] = "attention"
    paper: ClassVar[str] = "Jiang et al., EMNLP Findings 2020, arXiv 1909.10351"
    needs: tuple[str, ...] = ("qkv.{layer}",)
    heads: tuple[str, ...] = ("qkv.{student_layer}",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions, *, layer: int = -1, student_layer: int = -1) -> None:
        super().__init__()
        teacher, student = layer_pair(self.name, "qkv", dimensions, layer=layer, student_layer=student_layer)
        if not teacher.heads or teacher.heads != student.heads:
            raise UsageError(
                f"attention: {teacher.name} of the teacher has {teacher.heads} attention heads, and {student.name} of"
                f" the student has {student.heads}",
                hint="choose a student with as many, or the objective minilm, which needs no equal heads",
            )
        self.needs, self.heads = (teacher.name,), (student.name,)
        self.attention_heads = teacher.heads

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads the student's layer (batch, tokens, 3 * width), the target (batch, tokens, 3 * dim) and the mask."""
        projections, target = student[self.heads[0]], batch.dense(self.needs[0])
        mask = real_tokens(batch, projections, target)
        return attention_error(projections, target, mask, heads=self.attention_heads)


def attention_error(student: Tokens, teacher: Tokens, mask: Mask, *, heads: int) -> Scalar:
    """Queries, keys and values (batch, tokens, 3 * width) of both, (batch, tokens) -> the mean squared difference of
    scores over heads and pairs of real tokens. The widths may differ."""
    difference = _scores(student, heads) - _scores(teacher, heads)
    pairs = (mask[:, :, None] & mask[:, None, :])[:, None]
    return torch.where(pairs, difference.square(), 0).sum() / (heads * pairs.sum().clamp(min=1))


def _scores(projections: Tensor, heads: int) -> Tensor:
    """(batch, heads, tokens, tokens)."""
    query, key, _ = query_key_value(projections, heads)
    return query @ key.transpose(2, 3) / query.shape[3] ** 0.5
