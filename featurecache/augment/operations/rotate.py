"""A turn about the middle."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn
from featurecache.augment.checks import check_number

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rotate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotate:
    """Bilinear rotation by an angle drawn evenly from both directions."""

    name: ClassVar[str] = "rotate"
    uniforms: ClassVar[int] = 2

    degrees: float = 15.0
    """The largest angle."""
    p: float = 1.0
    """How likely it is."""
    fill: int = 0
    """The grey of what comes into view."""

    def __post_init__(self) -> None:
        check_number("the degrees of a rotation", self.degrees, 0, 180)
        check_number("the p of a rotation", self.p, 0, 1)
        check_number("the fill of a rotation", self.fill, 0, 255)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The angle in degrees, counter-clockwise."""
        return (Column("rotate", 0, -self.degrees, self.degrees),)

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """The angle, 0 where there is none."""
        angle = (2 * uniforms[:, :1] - 1) * self.degrees
        return np.where(uniforms[:, 1:] < self.p, angle, 0.0)

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Rotate where the angle is not 0."""
        from featurecache.augment import frames, warp

        angles = parameters[:, 0]
        frames.change(images, angles != 0, warp.warped, warp.rotation(angles), fill=self.fill)
