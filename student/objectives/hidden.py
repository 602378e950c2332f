"""Hidden states token by token: TinyBERT's and HomoDistil's loss (Jiang et al., arXiv 1909.10351; Liang et al.)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from student.objectives.base import Batch, Dimensions
from student.objectives.shapes import Mask, Scalar, Tokens
from student.objectives.tokens import layer_pair, real_tokens

__all__ = ["HiddenStates", "hidden_error"]


class HiddenStates(nn.Module):
    """The mean of (W h_s - h_t)^2 over real tokens and dimensions, W a trained map from the student's width.

    h_t are the teacher's hidden states after `layer` and h_s the student's after `student_layer`; -1 (default) is the
    deepest there is. W is of this pair of layers alone, and begins as the identity where both are equally wide, so that
    a student that is its teacher begins at zero.
    """

    name: ClassVar[str] = "hidden"
    paper: ClassVar[str] = (
        "Jiang et al., EMNLP Findings 2020, arXiv 1909.10351; Liang et al., ICLR 2023, arXiv 2302.09632"
    )
    needs: tuple[str, ...] = ("hidden.{layer}",)
    heads: tuple[str, ...] = ("hidden.{student_layer}",)
    bank_rows = 0

    def __init__(self, dimensions: Dimensions, *, layer: int = -1, student_layer: int = -1) -> None:
        super().__init__()
        teacher, student = layer_pair(self.name, "hidden", dimensions, layer=layer, student_layer=student_layer)
        self.needs, self.heads = (teacher.name,), (student.name,)
        self.projection = nn.Linear(student.shape[-1], teacher.shape[-1], bias=False)
        if student.shape[-1] == teacher.shape[-1]:
            nn.init.eye_(self.projection.weight)

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads the student's layer (batch, tokens, width), the target (batch, tokens, dim) and the mask."""
        states, target = student[self.heads[0]], batch.dense(self.needs[0])
        return hidden_error(self.projection(states), target, real_tokens(batch, states, target))


def hidden_error(student: Tokens, teacher: Tokens, mask: Mask) -> Scalar:
    """(batch, tokens, dim), twice, and (batch, tokens) -> the mean squared difference over real tokens and dims."""
    errors: Tensor = (student - teacher).square().mean(dim=2)
    return torch.where(mask, errors, 0).sum() / mask.sum().clamp(min=1)
