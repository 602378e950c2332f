"""A box of a frame, resized to a square: by Pillow, or for many frames at once on a device."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["by_products", "resample", "resample_batch"]

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
_STEPS = 1024
"""Places in a pixel at which a box may begin or end: whole pixels stay whole through float32 and its errors."""
_BITS = 22
"""Pillow's weights are whole numbers of 2**-22."""


def resample(frame: np.ndarray, box: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 (height, width, 3) -> uint8 (3, size, size): what is in a box, float (4,), relative to the frame.

    It is antialiased, and sees nothing of the frame but the pixels that the box touches. First across, then down: left
    to itself, Pillow 13 goes down first where that is quicker, and pixels would depend on which Pillow it is.
    """
    height, width = frame.shape[:2]
    ((left, right),), ((top, bottom),) = _spans(box[None], 0, width), _spans(box[None], 1, height)
    first, upper = int(left), int(top)
    region = frame[upper : int(np.ceil(bottom)), first : int(np.ceil(right))]
    image, rows = Image.fromarray(np.ascontiguousarray(region)), len(region)
    image = image.resize((size, rows), _FILTERS[interpolation], box=(left - first, 0, right - first, rows))
    image = image.resize((size, size), _FILTERS[interpolation], box=(0, top - upper, size, bottom - upper))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def resample_batch(frames: "Tensor", boxes: np.ndarray, shows: np.ndarray, size: int, interpolation: str) -> "Tensor":
    """uint8 (n, height, width, 3) -> uint8 (k, 3, size, size), on the device of the frames: `resample` of each box.

    boxes: float (k, 4), relative; shows: int64 (k,), the frame of each box.
    """
    import torch

    if frames.device.type != "cpu":
        return by_products(frames, boxes, shows, size, interpolation)
    pixels = frames.numpy()
    cut = [resample(pixels[shown], box, size, interpolation) for shown, box in zip(shows, boxes, strict=True)]
    return torch.from_numpy(np.stack(cut)) if cut else torch.zeros(0, 3, size, size, dtype=torch.uint8)


def by_products(frames: "Tensor", boxes: np.ndarray, shows: np.ndarray, size: int, interpolation: str) -> "Tensor":
    """`resample_batch` as it is on a GPU: on a CPU Pillow is ten times as quick.

    Two matrix products of whole numbers in float64, which are exact, make it what Pillow gives: whatever the batch, the
    order of sums, and the device.
    """
    import torch

    from featurecache.transfer import sent

    height, width = frames.shape[1:3]
    across = _matrices(_spans(boxes, 0, width), width, size, interpolation, frames.device)
    down = _matrices(_spans(boxes, 1, height), height, size, interpolation, frames.device)
    images = frames[sent(shows, frames.device)].permute(0, 3, 1, 2).double()
    narrow = _rounded(images @ across[:, None].transpose(2, 3))
    return _rounded(down[:, None] @ narrow).to(torch.uint8)


def _matrices(spans: np.ndarray, length: int, size: int, interpolation: str, device: "torch.device | str") -> "Tensor":
    """float64 (boxes, size, length) on a device, whole numbers: how much each pixel of a frame counts for each of the
    result."""
    import torch

    from featurecache.transfer import sent

    taken, weights = (sent(each, device) for each in _weights(spans, size, interpolation))
    room = torch.zeros(len(spans), size, length + taken.shape[2], dtype=torch.float64, device=device)
    return room.scatter_(2, taken, weights)[:, :, :length]


def _rounded(sums: "Tensor") -> "Tensor":
    """Sums of pixels times weights -> whole numbers from 0 to 255."""
    half = 2 ** (_BITS - 1)
    return ((sums + half) / 2**_BITS).floor_().clamp_(0, 255)


def _spans(boxes: np.ndarray, axis: int, length: int) -> np.ndarray:
    """float64 (boxes, 2): where boxes begin and end along an axis (0 across, 1 down), in pixels: within the frame, at
    1/1024 pixel, at least one pixel long."""
    boxes = np.nan_to_num(boxes.astype(np.float64), nan=0.0)
    start = np.clip(boxes[:, axis], 0, 1) * length
    stop = start + np.clip(boxes[:, 2 + axis], 0, 1) * length
    start, stop = (np.rint(np.minimum(end, length) * _STEPS) / _STEPS for end in (start, stop))
    start = np.minimum(start, length - 1)
    return np.stack([start, np.maximum(stop, start + 1)], axis=1)


def _weights(spans: np.ndarray, size: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """The few pixels of a frame, int64 (boxes, size, few), that count for each of the result, and how much, float64 of
    the same shape, whole numbers; those beyond the box count 0."""
    start, stop = spans[:, :1], spans[:, 1:]
    scale = (stop - start) / size
    if interpolation == "nearest":
        # one addition after the other, as Pillow goes: at the border of two pixels it decides between them
        steps = np.concatenate([start - np.floor(start) + scale * 0.5, np.repeat(scale, size - 1, axis=1)], axis=1)
        taken = np.floor(start) + np.floor(np.cumsum(steps, axis=1))
        return taken[:, :, None].astype(np.int64), np.full((*taken.shape, 1), 2.0**_BITS)
    middle = (start + (np.arange(size) + 0.5) * scale)[:, :, None]
    stretch = np.maximum(scale, 1.0)[:, :, None]
    reach = _SUPPORT[interpolation] * stretch
    lowest = np.maximum(np.floor(middle - reach + 0.5), np.floor(start)[:, :, None])
    highest = np.minimum(np.floor(middle + reach + 0.5), np.ceil(stop)[:, :, None])
    pixel = lowest + np.arange(int((highest - lowest).max(initial=1)))
    curve = _CURVES[interpolation]((pixel + 0.5 - middle) / stretch)
    curve = np.where(pixel < highest, curve, 0.0)
    share = curve / curve.sum(axis=2, keepdims=True) * 2**_BITS
    return pixel.astype(np.int64), np.trunc(share + np.copysign(0.5, share))


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0.0)


def _cubic(distance: np.ndarray, sharpness: float) -> np.ndarray:
    """Keys' cubic: 1 at 0, and 0 at every other whole number."""
    x = np.abs(distance)
    near = ((sharpness + 2) * x - (sharpness + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * sharpness
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bilinear": _triangle,
    "bicubic": partial(_cubic, sharpness=-0.5),
}
