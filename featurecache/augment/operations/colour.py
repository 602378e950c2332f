"""Brightness, contrast, saturation and hue, in any order, drawn as torchvision's ColorJitter draws them."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn
from featurecache.augment.checks import check_number

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Colour"]

_ORDERS = np.array(list(itertools.permutations(range(4))))
_PLAIN = (1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Colour:
    """Four changes of colour, each with its own factor, one after the other in an order that is drawn too."""

    name: ClassVar[str] = "colour"
    uniforms: ClassVar[int] = 5

    brightness: float = 0.4
    """A factor is drawn from 1 - brightness (at least 0) to 1 + brightness."""
    contrast: float = 0.4
    """As brightness, for the distance from the mean grey."""
    saturation: float = 0.4
    """As brightness, for the distance of each pixel from its own grey."""
    hue: float = 0.1
    """The hue is turned by -hue to hue of a full circle."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_number(f"the {name} of a colour change", getattr(self, name), 0, 4)
        check_number("the hue of a colour change", self.hue, 0, 0.5)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Three factors, the turn of the hue, and the number of the order."""
        reach = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        factors = [Column(f"colour.{name}", 1, max(0.0, 1 - value), 1 + value) for name, value in reach.items()]
        hue = Column("colour.hue", 0, -self.hue, self.hue)
        return (*factors, hue, Column("colour.order", 0, 0, len(_ORDERS) - 1, whole=True))

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """Each number evenly from its range."""
        low = np.array([column.low for column in self.columns[:4]])
        high = np.array([column.high for column in self.columns[:4]])
        order = np.floor(uniforms[:, 4:] * len(_ORDERS))
        return np.concatenate([low + (high - low) * uniforms[:, :4], order], axis=1)

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Each change in its turn, left out where it would change nothing."""
        from featurecache.augment import colours, frames

        steps = (colours.brightness, colours.contrast, colours.saturation, colours.hue)
        turns = _ORDERS[parameters[:, 4].astype(np.int64)]
        for turn in turns.T:
            for number, step in enumerate(steps):
                values = parameters[:, number]
                frames.change(images, (turn == number) & (values != _PLAIN[number]), step, values)
