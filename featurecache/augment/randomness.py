"""Random numbers that depend on seed, key and view alone: the same on every machine, in any order of calls."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["uniforms"]


def uniforms(keys: Sequence[str], *, seed: int, view: int, count: int, stream: int = 0) -> np.ndarray:
    """float64 (keys, count) in [0, 1), of 53 bits each.

    The bits are Philox 4x64's, its key taken from the SHA-256 of seed and sample key, and view and stream in the upper
    words of its counter, so that no two rows overlap. numpy promises these bits to stay; it does not promise its
    distributions.
    """
    raw = np.empty((len(keys), count), np.uint64)
    philox: Any = np.random.Philox(key=0)
    state = philox.state
    counter = np.array([0, 0, stream, view], np.uint64)
    for row, key in enumerate(keys):
        digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
        state["state"] = {"counter": counter, "key": np.frombuffer(digest[:16], "<u8").astype(np.uint64)}
        state["buffer_pos"] = 4  # nothing left over of the sample before
        philox.state = state
        raw[row] = philox.random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53
