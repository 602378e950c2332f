"""Frames turned, sheared, scaled and moved: bilinear, about the middle."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featurecache.augment.frames import each
from featurecache.transfer import sent

__all__ = ["rotation", "scaling", "shear", "shift", "warped"]

_FARTHEST = 64.0
"""Frames: beyond it there is nothing but the fill, whatever the number."""


def warped(images: Tensor, sources: np.ndarray, *, fill: int) -> Tensor:
    """uint8 (frames, 3, side, side) -> the same, each pixel taken from where `sources` says.

    sources: (frames, 2, 3), from (x, y, 1) in the result to (x, y) in the frame, both from -0.5 to 0.5 with 0 in the
    middle. Outside the frame everything is of one grey, `fill`.
    """
    side = images.shape[-1]
    middles = sent(((np.arange(side) + 0.5) / side - 0.5).astype(np.float32), images.device)
    clipped = np.clip(np.nan_to_num(sources), -_FARTHEST, _FARTHEST)
    across, down = (
        _pixels(each(row[0], images) * middles + each(row[1], images) * middles[:, None] + each(row[2], images), side)
        for row in clipped.transpose(1, 2, 0)
    )
    padded = F.pad(images, (1, 2, 1, 2), value=fill)
    left, top = across.floor(), down.floor()
    first = (top.long() + 1) * (side + 3) + left.long() + 1
    upper = _between(padded, first, across - left)
    lower = _between(padded, first + side + 3, across - left)
    weight = down - top
    return (upper * (1 - weight) + lower * weight).round_().to(torch.uint8)


def _pixels(relative: Tensor, side: int) -> Tensor:
    """Pixel coordinates (0 is the middle of the first one); one pixel outside is as good as any farther."""
    return ((relative + 0.5) * side - 0.5).clamp_(-1, side)


def _between(padded: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    """float32 (frames, 3, side, side): between the pixel `first` of padded frames and the one to its right."""
    flat = padded.flatten(2)
    shape = (*padded.shape[:2], *first.shape[-2:])
    left, right = (flat.gather(2, (first + step).flatten(2).expand(-1, 3, -1)).view(shape).float() for step in (0, 1))
    return left * (1 - weight) + right * weight


def rotation(degrees: np.ndarray) -> np.ndarray:
    """float64 (frames, 2, 3) of counter-clockwise angles (frames,)."""
    angle = np.deg2rad(degrees.astype(np.float64))
    cosine, sine, zero = np.cos(angle), np.sin(angle), np.zeros(len(angle))
    return _matrix([[cosine, -sine, zero], [sine, cosine, zero]])


def scaling(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """float64 (frames, 2, 3): what is there gets this many times as wide and as high."""
    zero = np.zeros(len(across))
    return _matrix([[1 / across, zero, zero], [zero, 1 / down, zero]])


def shear(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """float64 (frames, 2, 3): rows moved by a share of their height, or columns of their place."""
    one, zero = np.ones(len(across)), np.zeros(len(across))
    return _matrix([[one, -across, zero], [-down, one, zero]])


def shift(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """float64 (frames, 2, 3): moved by shares of the side, to the right and down."""
    one, zero = np.ones(len(across)), np.zeros(len(across))
    return _matrix([[one, zero, -across], [zero, one, -down]])


def _matrix(rows: list[list[np.ndarray]]) -> np.ndarray:
    return np.array([[column.astype(np.float64) for column in row] for row in rows]).transpose(2, 0, 1)
