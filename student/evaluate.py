"""How good a student is: against labels, against its teacher's cached outputs, and as features."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.types import NO_LABEL, SampledLogits, SparseLogits
from student.data import CachedData
from student.linear_probe import fit_linear_probe
from student.models.student import Student
from student.objectives.kl import kl_divergence
from student.objectives.sparse import sparse_kl_divergence

__all__ = ["Features", "compare", "feature_scores", "run_student", "top_class"]

_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Features:
    """Vectors with labels, for judging features: float32 (rows, dim) and int64 (rows,)."""

    vectors: Tensor
    labels: np.ndarray


def run_student(student: Student, data: CachedData, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Every output of the student for every row, on the CPU: {"features": float32 (rows, dim), head: ...}.

    A shared head's output is there once, under the head's own name and in its own classes.
    """
    student.to(data.device).eval()
    found: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for batch in data.in_order(batch_size):
            for name, values in student(batch.inputs).items():
                if name not in student.shared:
                    found.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(values) for name, values in found.items()}


def compare(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor | SparseLogits],
    labels: np.ndarray,
    classes: np.ndarray | None,
) -> dict[str, float | None]:
    """Accuracy of both where labels exist, and how far they agree; None for what cannot be said.

    `labels` is int64 (rows,) in the data's classes; `classes` is the teacher's logit for each of them, or None if they
    do not correspond. accuracy, agreement: top-1; kl: mean KL(teacher || student) in nats at temperature 1 (over the
    stored classes and one for the rest where logits are sparse; an unbiased estimate where they are sampled); cosine:
    mean over rows of embeddings.
    """
    known = labels != NO_LABEL
    scores: dict[str, float | None] = dict.fromkeys(("accuracy", "teacher_accuracy", "agreement", "kl", "cosine"))
    logits, targets = student.get("logits"), teacher.get("logits")
    if known.any() and classes is not None:
        wanted = classes[labels[known]]
        if targets is not None:
            scores["teacher_accuracy"] = _mean(top_class(targets, classes)[known] == wanted)
        if logits is not None:
            scores["accuracy"] = _mean(top_class(logits, classes)[known] == wanted)
    if known.any() and "labels" in student:
        scores["accuracy"] = _mean(student["labels"].argmax(1).numpy()[known] == labels[known])
    if logits is not None and targets is not None:
        scores["agreement"] = _mean(top_class(logits) == top_class(targets))
        scores["kl"] = _kl(logits, targets)
    elif "labels" in student and targets is not None and classes is not None:
        scores["agreement"] = _mean(classes[top_class(student["labels"])] == top_class(targets))
    if "embedding" in student and isinstance(embedding := teacher.get("embedding"), Tensor):
        scores["cosine"] = float(F.cosine_similarity(student["embedding"], embedding).mean())
    return scores


def feature_scores(bank: Features, queries: Features, validation: np.ndarray, *, classes: int) -> dict[str, float]:
    """Top-1 of the 10 nearest neighbours (cosine, in the bank) and of a linear probe fitted on the bank.

    `validation` is bool (bank rows,): the part of the bank that decides when the probe's fit stops.
    """
    probe = fit_linear_probe(bank.vectors, bank.labels, validation, classes=classes)
    linear = probe(queries.vectors).argmax(1).numpy() == queries.labels
    neighbours = _nearest_neighbours(bank, queries, classes) == queries.labels
    return {"neighbours": _mean(neighbours), "linear": _mean(linear)}


def top_class(logits: Tensor | SparseLogits, among: np.ndarray | None = None) -> np.ndarray:
    """int64 (rows,): the class with the largest logit; of a few classes only, where `among` lists them.

    Where none of those is among the stored ones of sparse logits, it is the largest of all. Of sampled logits it is
    the first that is known exactly, else the one that was drawn most often.
    """
    if isinstance(logits, SparseLogits):
        ranked = logits.indices.numpy()
        wanted = np.ones_like(ranked, bool) if among is None else np.isin(ranked, among)
        return ranked[np.arange(len(ranked)), wanted.argmax(1)]
    if among is None:
        return logits.argmax(1).numpy()
    return among[logits[:, among].argmax(1).numpy()]


def _kl(logits: Tensor, targets: Tensor | SparseLogits) -> float | None:
    if not isinstance(targets, SparseLogits):
        return float(kl_divergence(logits, targets))
    stored = (targets.temperature,) if isinstance(targets, SampledLogits) else targets.temperatures
    return float(sparse_kl_divergence(logits, targets)) if 1.0 in stored else None


def _nearest_neighbours(bank: Features, queries: Features, classes: int) -> np.ndarray:
    """int64 (queries,): the most frequent class among the nearest rows of the bank; of equal ones, the nearer one."""
    stored = F.normalize(bank.vectors, dim=1)
    labels = torch.from_numpy(bank.labels)
    found = []
    for part in F.normalize(queries.vectors, dim=1).split(1024):
        nearest = (part @ stored.T).topk(min(_NEIGHBOURS, len(stored)), dim=1).indices
        votes = torch.zeros(len(part), classes)
        weights = torch.linspace(1.0, 0.99, nearest.shape[1]).expand(len(part), -1)
        found.append(votes.scatter_add_(1, labels[nearest], weights).argmax(1))
    return torch.cat(found).numpy()


def _mean(hits: np.ndarray) -> float:
    return float(np.mean(hits))
