"""Whether targets are held on the device or read from the cache's files while a student trains."""

from typing import Literal, TypeAlias

import numpy as np
import torch

from featurecache.errors import UsageError
from featurecache.store.stored_inputs import StoredInputs
from student.targets.base import Targets

__all__ = ["Residency", "fits", "place", "place_inputs"]

Residency: TypeAlias = Literal["auto", "device", "stream"]
""""device", "stream" from the files, or on a GPU what fits there."""

_PART = 0.5
"""Of a GPU's free memory: the rest is for the student, what it computes, and the optimiser."""


def place(
    targets: Targets, rows: np.ndarray, *, total: int, views: int, device: torch.device, how: Residency
) -> tuple[Targets, str]:
    """The targets for training on these rows, int64 of `total`, and where they are, in words, where that is news.

    What a CPU trains from is in memory anyway: the files are mapped. Raises UsageError where rows cannot be held.
    """
    if not targets.outputs or not rows.size:
        return targets, ""
    needed = round(views * targets.stored_bytes * rows.size / total)
    if how == "device" and not targets.is_even:
        raise UsageError("targets of different lengths cannot be held on a device", hint="give --targets stream")
    if how == "device" or (how == "auto" and targets.is_even and fits(needed, device)):
        return targets.held_on(device, rows, views=views), f"{_size(needed)} of targets are held on {device}"
    told = f"targets are read from the cache as they are needed, {_size(needed)} in all"
    return targets, "" if device.type == "cpu" else told


def place_inputs(
    stored: StoredInputs, rows: np.ndarray, *, device: torch.device, how: Residency
) -> tuple[StoredInputs, str]:
    """The stored inputs for training on these rows, int64, and where they are, in words, where that is news.

    Images are held on a GPU; a CPU resizes them as they are in the files. Tokens come from the files.
    """
    if device.type != "cuda" or stored.modality != "image" or how == "stream" or not rows.size:
        return stored, ""
    needed = round(stored.stored_bytes * rows.size / stored.part.part.rows)
    if how == "device" or fits(needed, device):
        return stored.held_on(device, rows), f"{_size(needed)} of images are held on {device}"
    return stored, f"images are read from the cache as they are needed, {_size(needed)} in all"


def fits(needed: int, device: torch.device) -> bool:
    """Whether so many bytes are to be held on a device without being asked for."""
    return device.type == "cuda" and needed <= _PART * torch.cuda.mem_get_info(device)[0]


def _size(count: int) -> str:
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"
