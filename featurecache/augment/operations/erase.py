"""A rectangle painted over, drawn as torchvision's RandomErasing draws it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn
from featurecache.augment.checks import check_number, check_range
from featurecache.augment.operations.crop import box_columns

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Erase"]

_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Erase:
    """One rectangle of an even grey."""

    name: ClassVar[str] = "erase"
    uniforms: ClassVar[int] = 2 * _TRIES + 3
    columns: ClassVar[tuple[Column, ...]] = box_columns("erase", 0.0)

    p: float = 0.25
    """How likely it is."""
    scale: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the frame's area."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height over width."""
    fill: int = 0
    """The grey that it is painted with."""

    def __post_init__(self) -> None:
        check_number("the p of an erasure", self.p, 0, 1)
        check_range("the scale of an erasure", self.scale, 0, 1)
        check_range("the ratio of an erasure", self.ratio, 0.01, 100.0)
        check_number("the fill of an erasure", self.fill, 0, 255)

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """A box within the frame, all 0 where nothing is erased; ten tries for one that fits."""
        low, high = np.log(self.ratio[0]), np.log(self.ratio[1])
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * uniforms[:, :_TRIES]
        ratio = np.exp(low + (high - low) * uniforms[:, _TRIES : 2 * _TRIES])
        tall, wide = np.sqrt(area * ratio), np.sqrt(area / ratio)
        fits = (tall < 1) & (wide < 1)
        first, every = fits.argmax(axis=1), np.arange(len(uniforms))
        tall, wide = tall[every, first], wide[every, first]
        left, top = (1 - wide) * uniforms[:, -3], (1 - tall) * uniforms[:, -2]
        chosen = fits.any(axis=1) & (uniforms[:, -1] < self.p)
        return np.where(chosen[:, None], np.stack([left, top, wide, tall], axis=1), 0.0)

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Paint every box that is not empty."""
        from featurecache.augment import frames

        frames.change(images, parameters[:, 2] > 0, frames.painted, parameters, fill=self.fill)
