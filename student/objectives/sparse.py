"""Sparse logits as targets: what their classes are worth, and what becomes of the probability of all others."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from featurecache.errors import UsageError
from featurecache.types import NO_LABEL, SampledLogits, SparseLogits, TopLogits
from student.objectives.base import Batch, Mix
from student.objectives.shapes import Labels, Logits, Scalar

__all__ = ["Rest", "dense_logits", "sampled_kl_divergence", "sparse_kl_divergence"]

Rest: TypeAlias = Literal["bucket", "uniform", "label", "renormalise"]
"""What becomes of the probability that the stored classes leave to 1."""


def sparse_kl_divergence(
    student: Logits,
    teacher: SparseLogits,
    *,
    temperature: float = 1.0,
    rest: Rest = "bucket",
    labels: Labels | None = None,
    mix: Mix | None = None,
) -> Scalar:
    """(batch, classes), sparse logits of as many rows -> T^2 * mean_i KL(q || p_s), summed over classes.

    The stored classes have the teacher's probabilities, exact at this temperature. `rest` says where the others' mass r
    is in q (see `KLDivergence`); `labels` are (batch,), for "label" alone. Sampled logits have no rest. Raises
    UsageError where the logits were not stored for this temperature.
    """
    _check_temperature(teacher, temperature)
    log_student = F.log_softmax(student / temperature, dim=1)
    if isinstance(teacher, SampledLogits):
        return temperature**2 * sampled_kl_divergence(log_student, teacher)
    log_teacher, mass = _stored(teacher, temperature, student.dtype)
    if rest == "bucket":
        divergence = _with_bucket(log_student, log_teacher, mass, teacher)
    elif rest == "uniform":
        divergence = _divergence(_uniform(log_teacher, mass, teacher), log_student)
    elif rest == "renormalise":
        log_teacher = log_teacher.log_softmax(dim=1)
        divergence = (log_teacher.exp() * (log_teacher - log_student.gather(1, teacher.indices))).sum(dim=1)
    else:
        bucket = _with_bucket(log_student, log_teacher, mass, teacher)
        divergence = (
            bucket if labels is None else _at_label(log_student, log_teacher, mass, teacher, labels, mix, bucket)
        )
    return temperature**2 * divergence.mean()


def sampled_kl_divergence(log_student: Logits, teacher: SampledLogits) -> Scalar:
    """Log-probabilities (batch, classes), sampled logits -> mean_i (-sum_j t_j log p_j - H) over the stored classes.

    t_j is the estimate of the teacher's probability and H its exact entropy, so that both the value and the gradient,
    p * sum(t) - t in the logits, are unbiased; in a few rows the value may be below 0.
    """
    cross_entropy = -(teacher.weights.to(log_student.dtype) * log_student.gather(1, teacher.indices)).sum(dim=1)
    return (cross_entropy - teacher.entropy.to(log_student.dtype)).mean()


def dense_logits(batch: Batch, objective: str) -> Tensor:
    """The target "logits" (batch, classes). Raises UsageError where they are sparse."""
    logits = batch.targets["logits"]
    if isinstance(logits, Tensor):
        return logits
    raise UsageError(
        f"{objective} needs every class's logit, and the cache keeps some classes of its logits",
        hint="extract a cache with `--encode logits=float16`, or use kl, which takes sparse logits",
    )


def _stored(teacher: TopLogits, temperature: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-probabilities (batch, k) of the stored classes, and the log of their sum (batch, 1), at most 0."""
    column = teacher.temperatures.index(temperature)
    log_teacher = teacher.values.to(dtype) / temperature - teacher.logsumexp[:, column : column + 1].to(dtype)
    log_mass = log_teacher.logsumexp(dim=1, keepdim=True)
    # rounded values may add up to a little more than 1
    return log_teacher - log_mass.clamp(min=0), log_mass.clamp(max=0)


def _with_bucket(log_student: Tensor, log_teacher: Tensor, log_mass: Tensor, teacher: TopLogits) -> Tensor:
    divergence = (log_teacher.exp() * (log_teacher - log_student.gather(1, teacher.indices))).sum(dim=1)
    if teacher.indices.shape[1] == teacher.size:
        return divergence
    rest = -torch.expm1(log_mass).squeeze(1)
    # from the other classes themselves: 1 - (mass of the stored ones) has no digits left once it is tiny
    log_student_rest = log_student.scatter(1, teacher.indices, -math.inf).logsumexp(dim=1)
    return divergence + torch.xlogy(rest, rest) - rest * log_student_rest


def _uniform(log_teacher: Tensor, log_mass: Tensor, teacher: TopLogits) -> Tensor:
    """Probabilities (batch, classes)."""
    share = -torch.expm1(log_mass) / max(teacher.size - teacher.indices.shape[1], 1)
    return share.repeat(1, teacher.size).scatter(1, teacher.indices, log_teacher.exp())


def _at_label(
    log_student: Tensor,
    log_teacher: Tensor,
    log_mass: Tensor,
    teacher: TopLogits,
    labels: Tensor,
    mix: Mix | None,
    bucket: Tensor,
) -> Tensor:
    """`bucket`, (batch,), in rows without a label, or mixed with one that has none."""
    rest = -torch.expm1(log_mass)
    target = torch.zeros_like(log_student).scatter(1, teacher.indices, log_teacher.exp())
    known = labels != NO_LABEL
    if mix is None:
        target = target.scatter_add(1, labels.clamp(min=0)[:, None], rest)
    else:
        share = mix.share[:, None].to(rest.dtype)
        target = target.scatter_add(1, labels.clamp(min=0)[:, None], share * rest)
        target = target.scatter_add(1, mix.labels.clamp(min=0)[:, None], (1 - share) * rest)
        known = known & ((mix.labels != NO_LABEL) | (mix.share == 1))
    return torch.where(known, _divergence(target, log_student), bucket)


def _divergence(target: Tensor, log_student: Tensor) -> Tensor:
    """KL(target || student) of each row, from probabilities (batch, classes) and log-probabilities."""
    return (torch.xlogy(target, target) - target * log_student).sum(dim=1)


def _check_temperature(teacher: SparseLogits, temperature: float) -> None:
    if isinstance(teacher, SampledLogits):
        if temperature != teacher.temperature:
            raise UsageError(
                f"kl: the cache's logits were sampled at temperature {teacher.temperature:g}, not {temperature:g}",
                hint=f"use kl(temperature={teacher.temperature:g}), or extract again with "
                f"`--encode logits=sampled:N@{temperature:g}`",
            )
    elif temperature not in teacher.temperatures:
        stored = ", ".join(f"{number:g}" for number in teacher.temperatures) or "none"
        wanted = ",".join(f"{number:g}" for number in (*teacher.temperatures, temperature))
        choices = [f"use kl(temperature={number:g})" for number in teacher.temperatures[:1]]
        raise UsageError(
            f"kl: the cache's sparse logits have no logsumexp at temperature {temperature:g}; stored: {stored}",
            hint=", or ".join([*choices, f"extract again with `--temperatures {wanted}`"]),
        )
