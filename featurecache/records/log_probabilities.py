"""Class probabilities as logits: their logarithms, which a softmax turns back into them."""

import numpy as np

__all__ = ["LEAST", "log_probabilities"]

LEAST = -104.0
"""The logarithm that stands for a probability of 0, and for every smaller one: exp of it is 0 in float32."""


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """float64 (records, classes), not negative and of a sum about 1 -> float32, same shape: log(p / sum(p)), at least
    LEAST.

    softmax gives p / sum(p) back, exactly 0 where it was 0. A temperature T above 1 makes exp(LEAST / T) of a zero:
    5e-12 at T = 4, 0.006 at T = 20.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities) - np.log(probabilities.sum(axis=1, keepdims=True))
    return np.maximum(logs, LEAST).astype(np.float32)
