"""Embeddings of several teachers on one scale: per dimension, or by a rotation that leaves distances alone (PHI-S)."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featurecache.errors import CorruptCacheError, UsageError
from student.hadamard import hadamard

__all__ = ["Balance", "Moments", "load_balances", "moments", "phi_s", "save_balances", "standardise"]

_CONSTANT = 1e-6
"""A dimension that varies this little, beside the others, has nothing but rounding in it."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and covariance of vectors, exact in float64."""

    count: int
    mean: Tensor
    """float64 (dim,)."""
    covariance: Tensor
    """float64 (dim, dim), over `count`; (dim,) variances where no more was asked for."""


@dataclass(frozen=True, slots=True)
class Balance:
    """x' = (x - mean) / scale · matrixᵀ, and back."""

    mean: Tensor
    """float32 (dim,)."""
    scale: Tensor
    """float32 (dim,), or () for all dimensions alike."""
    matrix: Tensor | None = None
    """float32 (dim, dim), orthonormal; None for no rotation."""

    def apply(self, values: Tensor) -> Tensor:
        """(batch, dim) of the teacher -> the same, balanced."""
        centred = (values - self.mean) / self.scale
        return centred if self.matrix is None else centred @ self.matrix.T

    def inverse(self, values: Tensor) -> Tensor:
        """(batch, dim) balanced -> as the teacher gives them."""
        turned = values if self.matrix is None else values @ self.matrix
        return turned * self.scale + self.mean

    def classifier(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A linear head on the teacher's embeddings, weight (classes, dim) and bias (classes,), as one on balanced
        ones: it gives the same logits."""
        scaled = weight * self.scale
        return (scaled if self.matrix is None else scaled @ self.matrix.T), bias + weight @ self.mean

    def to(self, device: torch.device | str) -> "Balance":
        """The same on a device."""
        matrix = None if self.matrix is None else self.matrix.to(device)
        return replace(self, mean=self.mean.to(device), scale=self.scale.to(device), matrix=matrix)


def moments(batches: Iterable[Tensor], *, covariance: bool) -> Moments:
    """Of all rows of the batches, (batch, dim) each: sums of squares about the mean, merged batch by batch.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979. Raises UsageError where there is no
    row, or one is not finite.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        values = batch.double()
        own = values.mean(0)
        centred = values - own
        own_squares = centred.T @ centred if covariance else centred.square().sum(0)
        if count == 0:
            count, mean, squares = len(values), own, own_squares
            continue
        total, shift = count + len(values), own - mean
        between = torch.outer(shift, shift) if covariance else shift.square()
        squares = squares + own_squares + between * (count * len(values) / total)
        mean, count = mean + shift * (len(values) / total), total
    if not count or not bool(mean.isfinite().all()):
        raise UsageError("embeddings that are not there or not finite cannot be balanced")
    return Moments(count, mean.cpu(), (squares / count).cpu())


def standardise(found: Moments) -> Balance:
    """Mean 0 and variance 1 in every dimension (as UNIC, arXiv 2408.05088, and Theia, arXiv 2407.20179, do).

    A dimension that is constant over all rows is left at 0.
    """
    deviation = _variances(found).sqrt()
    typical = deviation.square().mean().sqrt()
    _check_varies(typical)
    scale = torch.where(deviation > _CONSTANT * typical, deviation, 1.0)
    return Balance(found.mean.float(), scale.float())


def phi_s(found: Moments) -> Balance:
    """PHI-S: x' = (1/phi) · H · Uᵀ (x - mean) (Ranzinger et al., 2024, arXiv 2410.01680).

    Σ = U Λ Uᵀ, phi² the mean eigenvalue, H an orthonormal Hadamard matrix: every dimension has variance 1, and all
    distances are scaled by 1/phi alike. Where there is no Hadamard matrix, H is a product of rotations that gives
    every dimension that variance as well.
    """
    if found.covariance.dim() != 2:
        raise UsageError("PHI-S needs the whole covariance")
    eigenvalues, vectors = torch.linalg.eigh(found.covariance)
    eigenvalues = eigenvalues.clamp(min=0)
    phi = eigenvalues.mean().sqrt()
    _check_varies(phi)
    size = len(eigenvalues)
    signs = hadamard(size)
    mixing = _levelling(eigenvalues / phi**2) if signs is None else torch.from_numpy(signs).double() / math.sqrt(size)
    return Balance(found.mean.float(), phi.float(), (mixing @ vectors.T).float())


def save_balances(path: Path, balances: Mapping[str, Balance]) -> None:
    """As a safetensors file: NAME:mean, NAME:scale and NAME:matrix for each output."""
    tensors: dict[str, Tensor] = {}
    for name, balance in balances.items():
        tensors |= {f"{name}:mean": balance.mean, f"{name}:scale": balance.scale}
        tensors |= {} if balance.matrix is None else {f"{name}:matrix": balance.matrix}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    metadata = {"balances": json.dumps(list(balances))}
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)
    partial.replace(path)


def load_balances(path: Path) -> dict[str, Balance]:
    """What `save_balances` saved; nothing where there is no file. Raises CorruptCacheError if it is damaged."""
    if not path.exists():
        return {}
    try:
        tensors = safetensors.torch.load_file(path)
        names = dict.fromkeys(name.rpartition(":")[0] for name in tensors)
        return {
            name: Balance(tensors[f"{name}:mean"], tensors[f"{name}:scale"], tensors.get(f"{name}:matrix"))
            for name in names
        }
    except (OSError, safetensors.SafetensorError, KeyError) as error:
        raise CorruptCacheError(f"cannot read {path}: {error}") from error


def _levelling(variances: Tensor) -> Tensor:
    """float64 (dim, dim), orthonormal: it turns dimensions of these variances, 1 on average, into ones of variance 1.

    One rotation at a time of a dimension below 1 and one above, which makes one of them 1 (Chan and Li, "Diagonal
    elements and eigenvalues of a real symmetric matrix", 1983).
    """
    matrix, turned = torch.diag(variances), torch.eye(len(variances), dtype=torch.float64)
    for _ in range(len(variances) - 1):
        diagonal = matrix.diagonal()
        low, high = int(diagonal.argmin()), int(diagonal.argmax())
        below, above, mixed = float(diagonal[low]) - 1, float(diagonal[high]) - 1, float(matrix[low, high])
        if below >= 0 or above <= 0:
            break
        # the tangent of the angle at which the lower one becomes 1: above · t² + 2 · mixed · t + below = 0
        tangent = (-mixed + math.copysign(math.sqrt(mixed**2 - above * below), -mixed)) / above
        cosine = 1 / math.hypot(1, tangent)
        rotation = torch.tensor([[1.0, tangent], [-tangent, 1.0]], dtype=torch.float64) * cosine
        pair = [low, high]
        matrix[pair] = rotation @ matrix[pair]
        matrix[:, pair] = matrix[:, pair] @ rotation.T
        turned[pair] = rotation @ turned[pair]
    return turned


def _variances(found: Moments) -> Tensor:
    return found.covariance.diagonal() if found.covariance.dim() == 2 else found.covariance


def _check_varies(typical: Tensor) -> None:
    if not float(typical) > 0:
        raise UsageError("the teacher's embedding is the same for every training row", hint="train without --balance")
