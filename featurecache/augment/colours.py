"""Changes of colour, as torchvision makes them of uint8 tensors.

Every step is one multiplication, addition, division or comparison at a time, and means are sums of whole numbers: the
result of a frame depends neither on the other frames of the batch nor on how many threads compute it. Nothing is
divided by a plain number, which a GPU does by multiplying: it would differ in the last bit.
"""

import numpy as np
import torch
from torch import Tensor

from featurecache.augment.frames import each

__all__ = ["brightness", "contrast", "grey", "hue", "saturation", "shifted", "spread", "vividness"]


def brightness(images: Tensor, factors: np.ndarray) -> Tensor:
    """uint8 (frames, 3, side, side), times a factor for each frame."""
    return _bytes(images.float() * each(factors, images))


def contrast(images: Tensor, factors: np.ndarray) -> Tensor:
    """Farther from, or nearer to, the mean of the frame's greys."""
    return blend(images, _mean(grey(images)), factors)


def saturation(images: Tensor, factors: np.ndarray) -> Tensor:
    """Farther from, or nearer to, each pixel's grey."""
    return blend(images, grey(images), factors)


def hue(images: Tensor, turns: np.ndarray) -> Tensor:
    """Hues turned by a share of the circle, from -0.5 to 0.5; lightest and darkest channel keep their values."""
    red, green, blue = images.float().unbind(1)
    largest, smallest = images.amax(1).float(), images.amin(1).float()
    span = largest - smallest
    divisor = torch.where(span == 0, torch.ones_like(span), span)
    sector = torch.where(
        largest == red,
        (green - blue) / divisor,
        torch.where(largest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sector = sector + each(turns * np.float32(6), images)[:, 0]
    channels = [largest - span * _away(sector + place) for place in (5, 3, 1)]
    return _bytes(torch.stack(channels, 1) * (255.999 / 255))


def grey(images: Tensor) -> Tensor:
    """float32 (frames, 1, side, side), whole numbers: the luma of each pixel."""
    red, green, blue = images.float().split(1, dim=1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()


def blend(images: Tensor, others: Tensor, factors: np.ndarray) -> Tensor:
    """images * factor + others * (1 - factor), cut to what a byte holds."""
    rest = others * each(np.float32(1) - factors.astype(np.float32), images)
    return _bytes(images.float() * each(factors, images) + rest)


def shifted(images: Tensor, amounts: np.ndarray) -> Tensor:
    """A share of white added to every pixel: DiffAugment's brightness."""
    return _bytes(images.float() + each(np.rint(amounts * np.float32(255)), images))


def vividness(images: Tensor, factors: np.ndarray) -> Tensor:
    """Farther from, or nearer to, the mean of a pixel's three channels: DiffAugment's saturation."""
    return blend(images, images.sum(1, keepdim=True, dtype=torch.int32).float() * (1 / 3), factors)


def spread(images: Tensor, factors: np.ndarray) -> Tensor:
    """Farther from, or nearer to, the mean of everything in the frame: DiffAugment's contrast."""
    return blend(images, _mean(images), factors)


def _mean(images: Tensor) -> Tensor:
    """float32 (frames, 1, 1, 1), of whole numbers."""
    whole = images.to(torch.int32).sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    return whole.float() * (1 / images[0].numel())


def _away(sector: Tensor) -> Tensor:
    """How far a channel is from the lightest one, 0 to 1, at a place on the circle of six."""
    turned = sector - (sector * (1 / 6)).floor_() * 6
    return torch.minimum(turned, 4 - turned).clamp_(0, 1)


def _bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)
