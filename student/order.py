"""In which order an epoch visits the rows: shuffled as a whole where they fit in memory, in groups of blocks where not.

Rows that are not in memory come from the disk one by one at a hundredth of the rate of whole blocks. So there, blocks
of neighbours are drawn, a group of them is mixed as a whole, and the next group is fetched meanwhile.
"""

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

__all__ = ["BLOCK", "GROUP", "Shuffle", "available_memory", "block_order", "choose_shuffle", "global_order"]

Shuffle: TypeAlias = Literal["global", "blocks"]

BLOCK = 1024
"""Neighbouring rows that are read together: some 1.5 MB of float16 embeddings."""
GROUP = 32
"""Blocks that are mixed as a whole: two groups are in memory at a time."""

_CONTAINER = Path("/sys/fs/cgroup")
_FITS = 0.6
"""The part of the available memory that a cache may fill: the rest is for samples and the student."""


def global_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64 (rows,): every position once, a function of (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def block_order(rows: int, *, seed: int, epoch: int, block: int = BLOCK, group: int = GROUP) -> np.ndarray:
    """int64 (rows,): every position once, a function of (seed, epoch).

    Blocks come in a random order, and positions in a random order within a group of blocks.
    """
    draw = np.random.default_rng((seed, epoch))
    order = draw.permutation(-(-rows // block))
    groups = [order[at : at + group] for at in range(0, len(order), group)]
    return np.concatenate([draw.permutation(_positions(blocks, block, rows)) for blocks in groups])


def choose_shuffle(wanted_bytes: int, available: int | None) -> Shuffle:
    """Rows that fit are shuffled as a whole; so are those of a system that does not say how much it has."""
    return "global" if available is None or wanted_bytes <= _FITS * available else "blocks"


def available_memory() -> int | None:
    """Bytes that can be used without swapping, within the limit of this container; None where nobody tells."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = (_CONTAINER / "memory.max").read_text().strip()
        found += [max(int(limit) - _used_by_container(), 0)] if limit.isdigit() else []
    except OSError:
        pass  # not Linux, or no such limit
    return min(found, default=None)


def _used_by_container() -> int:
    """Bytes in use, less those of files that are only kept because there is room."""
    files = (_CONTAINER / "memory.stat").read_text().split()
    return int((_CONTAINER / "memory.current").read_text()) - int(
        dict(zip(files[::2], files[1::2], strict=True))["file"]
    )


def _positions(blocks: np.ndarray, block: int, rows: int) -> np.ndarray:
    """int64: the positions of some blocks; the last block of all may be shorter."""
    positions = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    return positions[positions < rows]
