"""Frames of a batch changed in place, each by itself: which of them, and a few at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurecache.transfer import sent

__all__ = ["change", "each", "flipped", "inside", "mixed", "painted"]

_AT_ONCE = {"cpu": 4, "cuda": 64}
"""Frames: what a step keeps in between is to stay in a processor's cache, and is not to take gigabytes of a GPU."""


def change(
    images: Tensor, which: np.ndarray, step: Callable[..., Tensor], values: np.ndarray | None = None, **options: Any
) -> None:
    """Put `step(frames, values, **options)` in place of the frames of uint8 (frames, 3, side, side) where bool
    `which` (frames,) is set; `values` (frames, ...) has a row for each frame of the batch."""
    every = np.flatnonzero(which)
    at_once = _AT_ONCE.get(images.device.type, 64)
    for start in range(0, every.size, at_once):
        rows = every[start : start + at_once]
        at = sent(rows, images.device)
        given = () if values is None else (values[rows],)
        images[at] = step(images[at], *given, **options)


def each(values: np.ndarray, images: Tensor) -> Tensor:
    """(frames,) -> float32 (frames, 1, 1, 1) on the device of the images."""
    return sent(values.astype(np.float32), images.device).view(-1, 1, 1, 1)


def flipped(images: Tensor) -> Tensor:
    """Left and right exchanged."""
    return images.flip(-1)


def inside(boxes: np.ndarray, images: Tensor) -> Tensor:
    """bool (frames, 1, side, side): the pixels of a box, (frames, 4) relative to the frame, rounded to pixels."""
    side = images.shape[-1]
    boxes = boxes.astype(np.float64)
    start, stop = np.rint(boxes[:, :2] * side), np.rint((boxes[:, :2] + boxes[:, 2:4]) * side)
    place = np.arange(side)
    along = (place >= start[..., None]) & (place < stop[..., None])
    columns, rows = sent(along, images.device).unbind(1)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def painted(images: Tensor, boxes: np.ndarray, *, fill: int) -> Tensor:
    """One grey in a box of each frame."""
    return images.masked_fill(inside(boxes, images), fill)


def mixed(images: Tensor, others: Tensor, shares: np.ndarray, boxes: np.ndarray) -> Tensor:
    """uint8 (frames, 3, side, side): inside the box the other frame; without a box, `shares` of the frame itself and
    the rest of the other one."""
    share = each(shares, images)
    rest = each(np.float32(1) - shares, images)
    blend = (images.float() * share + others.float() * rest).round_().clamp_(0, 255).to(torch.uint8)
    is_cut = sent(boxes[:, 2] > 0, images.device).view(-1, 1, 1, 1)
    return torch.where(is_cut, torch.where(inside(boxes, images), others, images), blend)
