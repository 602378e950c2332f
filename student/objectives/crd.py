"""Contrastive representation distillation: each side against a memory of the other (CRD, ICLR 2020)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL
from student.objectives.base import Batch, Dimensions
from student.objectives.draws import random_bits
from student.objectives.geometry import directions
from student.objectives.shapes import Labels, Vectors

__all__ = ["CRD", "OtherClasses", "remember"]

_WIDTH = 128

_DENSE = 32
"""Up to so many rows for each negative, comparing with all rows is cheaper than gathering the negatives' vectors."""


class CRD(nn.Module):
    """-[log h(positive) + sum over K negatives of log(1 - h)], the mean over the batch, summed over both sides.

    h = a / (a + K / rows) with a = exp(u v / temperature) / Z; u is one network's output through a linear projector to
    128 dimensions, scaled to length 1, and v is from the memory of the other's: one such vector for each row of the
    cache, so 2 x rows x 128 floats. The defaults are the paper's: K = `negatives` = 16384 (at most all other rows),
    temperature 0.07, momentum 0.5. Its weight there is 0.8: write `crd:0.8`.

    Negatives are drawn evenly, with replacement, from the rows of other classes where the sample's class is known,
    else from all other rows: a function of (seed, step, row), so that resumed and parallel runs draw alike. Z is the
    mean of exp(u v / temperature) in the first training batch, times rows, and then constant. A batch's vectors go
    into the memories after its loss: momentum * old + (1 - momentum) * new, to length 1; of a row that stands in the
    batch several times, the mean of its vectors is the new one.

    In validation nothing is changed, the draws are always the same, and the positive is the other network's output
    itself, since a row that is held out has no memory: its vectors stay the random ones they were made with, and may be
    drawn as negatives.
    """

    name: ClassVar[str] = "crd"
    paper: ClassVar[str] = "Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    heads: ClassVar[tuple[str, ...]] = ()
    bank_rows = 0
    student_bank: Tensor
    teacher_bank: Tensor
    z: Tensor
    """Of the student's and of the teacher's side; 0 until the first training batch."""
    seed: Tensor
    step: Tensor

    def __init__(
        self, dimensions: Dimensions, *, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        """Raises UsageError where the number of the cache's rows is not known, or is 1."""
        super().__init__()
        if negatives < 1 or not 0.01 <= temperature < math.inf or not 0 <= momentum < 1:
            raise UsageError(
                f"crd: {negatives=}, {temperature=}, {momentum=}",
                hint="negatives is at least 1, temperature at least 0.01, momentum at least 0 and below 1",
            )
        if dimensions.labels is None or len(dimensions.labels) < 2:
            raise UsageError(
                "crd compares each row of a cache with others; there are none", hint="extract more samples"
            )
        rows = len(dimensions.labels)
        self.negatives, self.temperature, self.momentum = min(negatives, rows - 1), temperature, momentum
        self.student_projector = nn.Linear(dimensions.features, _WIDTH)
        self.teacher_projector = nn.Linear(dimensions.targets["embedding"], _WIDTH)
        self.others = OtherClasses(dimensions.labels)
        bound = 1 / math.sqrt(_WIDTH / 3)  # vectors of length about 1
        for side in ("student_bank", "teacher_bank"):
            self.register_buffer(side, torch.empty(rows, _WIDTH).uniform_(-bound, bound))
        self.register_buffer("z", torch.zeros(2))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Reads student "features" (batch, features), the target "embedding" (batch, dim) and batch.rows (batch,)."""
        u = directions(self.student_projector(student["features"]))
        v = directions(self.teacher_projector(batch.dense("embedding")))
        if self.training:
            self.step += 1
        step = self.step * int(self.training)
        negatives = self.others(batch.rows, random_bits(self.seed, step, batch.rows, self.negatives))
        of_student = self._side(0, u, v, self.teacher_bank, batch.rows, negatives)
        of_teacher = self._side(1, v, u, self.student_bank, batch.rows, negatives)
        if self.training:
            remember(self.student_bank, batch.rows, u, momentum=self.momentum)
            remember(self.teacher_bank, batch.rows, v, momentum=self.momentum)
        return of_student + of_teacher

    def _side(
        self, side: int, anchor: Tensor, partner: Tensor, bank: Tensor, rows: Tensor, negatives: Tensor
    ) -> Tensor:
        """The loss of one network's vectors (batch, 128) against the other's memory (rows, 128)."""
        positive = bank[rows] if self.training else partner
        own = (anchor * positive).sum(dim=1, keepdim=True) / self.temperature
        others = _similarities(anchor, bank, negatives) / self.temperature
        log_z = self._z(side, torch.cat([own, others], dim=1).detach()).log()
        log_noise = math.log(self.negatives / len(bank))
        # -log h and -log(1 - h), without a quotient that could vanish
        found = F.softplus(log_noise - (own - log_z))
        avoided = F.softplus(others - log_z - log_noise)
        return (found.sum() + avoided.sum()) / len(anchor)

    def _z(self, side: int, scores: Tensor) -> Tensor:
        """The side's constant, a scalar; of these scores, where no training batch has set it."""
        constant = torch.where(self.z[side] > 0, self.z[side], scores.exp().mean() * len(self.student_bank))
        if self.training:
            self.z[side] = constant
        return constant


class OtherClasses(nn.Module):
    """The rows that are not of a row's class, numbered without gaps, so that a draw is a sum and a look-up."""

    order: Tensor
    start: Tensor
    size: Tensor

    def __init__(self, labels: Labels) -> None:
        """A row without a label is a class of its own, as all rows are where there is one class and no other row."""
        super().__init__()
        rows = torch.arange(len(labels))
        known = labels if (labels != labels[0]).any() else torch.full_like(labels, NO_LABEL)
        classes = torch.where(known == NO_LABEL, known.max() + 1 + rows, known)
        order = classes.argsort(stable=True)
        _, found, sizes = classes.unique(return_inverse=True, return_counts=True)
        starts = sizes.cumsum(0) - sizes
        for name, values in {"order": order, "start": starts[found], "size": sizes[found]}.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, rows: Labels, bits: Tensor) -> Tensor:
        """Row numbers (batch,) and 32 random bits (batch, count) -> int64 (batch, count) rows of other classes."""
        start, size = self.start[rows, None], self.size[rows, None]
        number = (bits * (len(self.order) - size)) >> 32
        return self.order[number + size * (number >= start)]


@torch.no_grad()
def remember(bank: Tensor, rows: Labels, vectors: Vectors, *, momentum: float) -> None:
    """Move bank (all rows, dim) in place towards the vectors (batch, dim) of some rows; each is of length 1 after it.

    A row that is there several times moves once, towards the mean of its vectors, whatever their order.
    """
    same = rows[:, None] == rows[None, :]
    mean = same.to(vectors.dtype) @ vectors / same.sum(dim=1, keepdim=True)
    moved = directions(momentum * bank[rows] + (1 - momentum) * mean)
    first = torch.arange(len(rows), device=rows.device).where(same, len(rows)).amin(dim=1)
    bank.index_copy_(0, rows, moved[first])  # equal rows get one value to the last bit, in whichever order


def _similarities(anchor: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """(batch, dim), (rows, dim), (batch, count) -> anchor_i . bank_index, (batch, count)."""
    if len(bank) <= _DENSE * index.shape[1]:
        return (anchor @ bank.clone().T).gather(1, index)  # a copy: the memory moves on before the backward pass
    return (bank[index] @ anchor[:, :, None]).squeeze(2)
