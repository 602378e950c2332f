"""A box of random size, shape and place, drawn as torchvision's RandomResizedCrop draws it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn
from featurecache.augment.checks import check_range

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Crop", "box_columns"]

_TRIES = 10


def box_columns(prefix: str, plain: float) -> tuple[Column, ...]:
    """The four numbers of a box, relative to the whole frame."""
    return tuple(Column(f"{prefix}.{side}", plain, 0.0, 1.0) for side in ("left", "top", "width", "height"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """What is cut out and resized to the square that a network sees."""

    name: ClassVar[str] = "crop"
    uniforms: ClassVar[int] = 2 * _TRIES + 2
    columns: ClassVar[tuple[Column, ...]] = box_columns("box", np.nan)

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height, in pixels of the image."""

    def __post_init__(self) -> None:
        check_range("the scale of a crop", self.scale, 1e-4, 1.0)
        check_range("the ratio of a crop", self.ratio, 0.01, 100.0)

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """Whole pixels of the image, then divided by its size; ten tries, then the largest box in the middle."""
        height, width = np.maximum(drawn.sizes.astype(np.float64), 1).T
        area = (height * width)[:, None] * _between(self.scale, uniforms[:, :_TRIES])
        ratio = np.exp(_between((np.log(self.ratio[0]), np.log(self.ratio[1])), uniforms[:, _TRIES : 2 * _TRIES]))
        wide, high = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (wide >= 1) & (wide <= width[:, None]) & (high >= 1) & (high <= height[:, None])
        first = fits.argmax(axis=1)
        every = np.arange(len(first))
        found = fits.any(axis=1)
        middle_wide, middle_high = self._middle(width, height)
        wide = np.where(found, wide[every, first], middle_wide)
        high = np.where(found, high[every, first], middle_high)
        left = np.where(found, np.floor(uniforms[:, -2] * (width - wide + 1)), (width - wide) // 2)
        top = np.where(found, np.floor(uniforms[:, -1] * (height - high + 1)), (height - high) // 2)
        return np.stack([left / width, top / height, wide / width, high / height], axis=1)

    def _middle(self, width: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Width and height of the largest box whose ratio is within bounds."""
        wide = np.minimum(width, np.maximum(np.rint(height * self.ratio[1]), 1))
        high = np.minimum(height, np.maximum(np.rint(width / self.ratio[0]), 1))
        return wide, high

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Nothing: frames come cut out and resized."""


def _between(bounds: tuple[float, float], uniforms: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * uniforms
