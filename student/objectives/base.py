"""The contract of an objective, and the batch that it reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from featurecache.errors import UsageError
from featurecache.inputs import Inputs
from featurecache.types import OutputSpec, SparseLogits

__all__ = ["Batch", "Dimensions", "Mix", "Objective"]


@dataclass(frozen=True, slots=True)
class Mix:
    """What the samples of a batch were mixed with, on the student's device."""

    labels: Tensor
    """int64 (batch,): the other sample's class, NO_LABEL where there is none or the sample is not mixed."""
    share: Tensor
    """float32 (batch,): how much of it is the sample itself; 1 where it is not mixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One training batch; every tensor is on the student's device."""

    inputs: Inputs
    """What the student takes in."""
    targets: Mapping[str, Tensor | SparseLogits]
    """Teacher outputs by name, float32 (batch, *shape) or sparse logits; for each token of texts (batch, tokens, dim),
    zeros where `inputs["mask"]` says that there is no token."""
    labels: Tensor
    """int64 (batch,): class index, or NO_LABEL where there is none or it may not be used."""
    rows: Tensor
    """int64 (batch,): row numbers in the cache."""
    mix: Mix | None = None
    """None where no sample is mixed with another."""
    bank: Mapping[str, Tensor] = field(default_factory=dict)
    """Targets of other rows, float32 (negatives, *shape), none of them in `rows`; empty unless an objective asks."""
    bank_labels: Tensor | None = None
    """int64 (negatives,): the class of each row of the bank, as in `labels`; None where there is no bank."""

    def dense(self, name: str) -> Tensor:
        """A target that is never sparse: any but logits."""
        target = self.targets[name]
        assert isinstance(target, Tensor)
        return target


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """What an objective may need to make its projectors and banks."""

    features: int
    """Width of the student's pooled features."""
    targets: Mapping[str, int]
    """Width of each teacher output."""
    outputs: Mapping[str, OutputSpec] = field(default_factory=dict)
    """What the cache holds of the teacher's layers, "hidden.6", "qkv.12", ...: for each token."""
    layers: Mapping[str, OutputSpec] = field(default_factory=dict)
    """What the student can give of its own layers: for each token."""
    labels: Tensor | None = None
    """int64 (rows of the cache,): the class of each row, NO_LABEL where there is none or it may not be used. As long as
    a bank of one vector for each row must be."""
    classifier: tuple[Tensor, Tensor] | None = None
    """float32 weight (classes, dim) and bias (classes,) of the linear head that makes the teacher's logits from its
    embedding; None where the cache does not hold it."""
    labels_are_logits: bool = True
    """Whether labels are numbers of the teacher's logits: whether the data's classes are among the teacher's."""

    def check_classes(self, objective: str) -> None:
        """Raises UsageError unless a label says which of the teacher's classes it is."""
        if not self.labels_are_logits:
            raise UsageError(
                f"{objective} needs each label's own logit, and the data's classes are not among the teacher's",
                hint="say which is which with --class-map, or make logits of the data's classes with `fc probe`",
            )


@runtime_checkable
class Objective(Protocol):
    """A scalar loss between a student and cached targets; an `nn.Module`, since it may own projectors.

    Its parameters are optimised and checkpointed with the student and never exported. It is made as
    `Class(dimensions, **options)`, where the options are keyword-only numbers, or words of a `Literal`, with
    defaults. An attribute `notes` may have sentences that the user should read before it is trained towards. It is in
    training mode for batches that are trained on alone; in evaluation mode it changes nothing, neither itself nor a
    generator.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    """Authors, venue, arXiv number."""
    needs: ClassVar[tuple[str, ...]]
    """Teacher outputs that must be in `batch.targets`, or "labels". Of an objective on layers the class has patterns,
    such as "hidden.{layer}", that its options fill in (`student.objectives.tokens.filled`), and an instance names."""
    heads: ClassVar[tuple[str, ...]]
    """Student outputs that it reads besides "features": "logits", "embedding" (as wide as the target), "labels", and of
    its layers "hidden.L" and "qkv.L"."""
    bank_rows: int
    """How many other cached rows it wants in `batch.bank`; 0 for none."""

    def __call__(self, student: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean over the batch, a scalar. `student` has "features" (batch, features) and the heads, float32."""
        ...
