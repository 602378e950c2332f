"""Hadamard matrices: entries of 1 and -1, rows at right angles."""

import functools
import math

import numpy as np

__all__ = ["hadamard"]


@functools.lru_cache(maxsize=16)
def hadamard(size: int) -> np.ndarray | None:
    """int64 (size, size) of 1 and -1 with H Hᵀ = size · I, or None where these constructions give none.

    Sylvester's doubling, Paley's two for primes (Paley, J. Math. Phys. 12, 1933), and Kronecker products of them.
    """
    if size == 1:
        return np.ones((1, 1), np.int64)
    if size == 2:
        return np.array([[1, 1], [1, -1]])
    if size < 1 or size % 4:
        return None
    if _is_prime(size - 1):  # size is a multiple of 4, so the prime leaves 3
        return _paley_first(size - 1)
    if _is_prime(size // 2 - 1) and (size // 2 - 1) % 4 == 1:
        return _paley_second(size // 2 - 1)
    for factor in (2, *range(4, math.isqrt(size) + 1, 4)):
        if (
            size % factor == 0
            and (left := hadamard(factor)) is not None
            and (right := hadamard(size // factor)) is not None
        ):
            return np.kron(left, right)
    return None


def _paley_first(prime: int) -> np.ndarray:
    """Of size prime + 1, for primes that leave 3 when divided by 4: I + S with S skew-symmetric."""
    skew = np.zeros((prime + 1, prime + 1), np.int64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _residues(prime)
    return skew + np.eye(prime + 1, dtype=np.int64)


def _paley_second(prime: int) -> np.ndarray:
    """Of size 2 (prime + 1), for primes that leave 1 when divided by 4: C symmetric with a zero diagonal."""
    symmetric = np.zeros((prime + 1, prime + 1), np.int64)
    symmetric[0, 1:] = symmetric[1:, 0] = 1
    symmetric[1:, 1:] = _residues(prime)
    identity = np.eye(prime + 1, dtype=np.int64)
    return np.kron(symmetric, np.array([[1, 1], [1, -1]])) + np.kron(identity, np.array([[1, -1], [-1, -1]]))


def _residues(prime: int) -> np.ndarray:
    """int64 (prime, prime): 1 where i - j is a square modulo the prime, -1 where it is not, 0 where it is 0."""
    character = np.full(prime, -1)
    character[np.arange(1, prime) ** 2 % prime] = 1
    character[0] = 0
    numbers = np.arange(prime)
    return character[(numbers[:, None] - numbers) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
