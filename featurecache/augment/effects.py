"""RandAugment's effects, each of a strength from -1 to 1; those with one direction take the strength's size."""

import numpy as np
import torch
from torch import Tensor

from featurecache.augment import colours, warp
from featurecache.transfer import sent

__all__ = [
    "autocontrast",
    "brightness",
    "contrast",
    "equalise",
    "posterise",
    "rotate",
    "saturation",
    "sharpness",
    "shear_x",
    "shear_y",
    "shift_x",
    "shift_y",
    "solarise",
]

_SHEAR = 0.3
_SHIFT = 150 / 331  # RandAugment's 150 pixels, of the 331 that its networks saw
_DEGREES = 30.0
_FACTOR = 0.9
_BITS = 4


def shear_x(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Rows moved sideways, the farther from the middle the more, up to 0.3."""
    return warp.warped(images, warp.shear(_SHEAR * strengths, 0 * strengths), fill=0)


def shear_y(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Columns moved up or down, the farther from the middle the more, up to 0.3."""
    return warp.warped(images, warp.shear(0 * strengths, _SHEAR * strengths), fill=0)


def shift_x(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Moved to the right by up to 0.45 of the side."""
    return warp.warped(images, warp.shift(_SHIFT * strengths, 0 * strengths), fill=0)


def shift_y(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Moved down by up to 0.45 of the side."""
    return warp.warped(images, warp.shift(0 * strengths, _SHIFT * strengths), fill=0)


def rotate(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Turned by up to 30 degrees."""
    return warp.warped(images, warp.rotation(_DEGREES * strengths), fill=0)


def brightness(images: Tensor, strengths: np.ndarray) -> Tensor:
    """A factor from 0.1 to 1.9."""
    return colours.brightness(images, _factors(strengths))


def contrast(images: Tensor, strengths: np.ndarray) -> Tensor:
    """A factor from 0.1 to 1.9."""
    return colours.contrast(images, _factors(strengths))


def saturation(images: Tensor, strengths: np.ndarray) -> Tensor:
    """A factor from 0.1 to 1.9: RandAugment's "color"."""
    return colours.saturation(images, _factors(strengths))


def sharpness(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Farther from, or nearer to, a smoothed frame, by a factor from 0.1 to 1.9; the outermost pixels stay."""
    if images.shape[-1] <= 2:
        return images
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = _smoothed(images).float()
    return colours.blend(images, smooth, _factors(strengths))


def posterise(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Up to four of the eight bits of each pixel set to 0."""
    lost = np.rint(_BITS * np.abs(strengths)).astype(np.int64)
    masks = sent((256 - 2**lost).astype(np.uint8), images.device)
    return images & masks.view(-1, 1, 1, 1)


def solarise(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Pixels above a threshold inverted: white alone at strength 0, all at 1."""
    threshold = np.ceil(255 * (1 - np.abs(strengths.astype(np.float64)))).astype(np.uint8)
    limit = sent(threshold, images.device).view(-1, 1, 1, 1)
    return torch.where(images >= limit, 255 - images, images)


def autocontrast(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Each channel stretched to 0 to 255, whatever the strength; one of a single value stays."""
    low, high = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    span = high - low
    is_flat = span == 0
    scale = torch.full_like(span, 255.0) / torch.where(is_flat, torch.ones_like(span), span)
    stretched = ((images.float() - low) * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(is_flat, images, stretched)


def equalise(images: Tensor, strengths: np.ndarray) -> Tensor:
    """Each channel's values spread evenly, whatever the strength, in whole numbers; one of few values stays."""
    flat = images.flatten(2).long()
    ones = torch.ones_like(flat)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=flat.device).scatter_add_(2, flat, ones)
    below = counts.cumsum(2)
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = torch.div(below[:, :, -1:] - last, 255, rounding_mode="floor")
    half = torch.div(step, 2, rounding_mode="floor")
    table = torch.div(below - counts + half, step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    spread = table.gather(2, flat).to(torch.uint8).view(images.shape)
    return torch.where((step == 0)[..., None], images, spread)


def _factors(strengths: np.ndarray) -> np.ndarray:
    return 1 + _FACTOR * strengths


def _smoothed(images: Tensor) -> Tensor:
    """int32 (frames, 3, side - 2, side - 2): the mean of nine pixels, the middle one counted five times."""
    whole = images.to(torch.int32)
    side = images.shape[-1] - 2
    total = 4 * whole[:, :, 1:-1, 1:-1]
    for down in range(3):
        for across in range(3):
            total = total + whole[:, :, down : down + side, across : across + side]
    return torch.div(2 * total + 13, 26, rounding_mode="floor")
