"""Left and right exchanged."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn
from featurecache.augment.checks import check_number

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Flip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A horizontal flip."""

    name: ClassVar[str] = "flip"
    uniforms: ClassVar[int] = 1
    columns: ClassVar[tuple[Column, ...]] = (Column("flip", 0, 0, 1, whole=True),)

    p: float = 0.5
    """How likely it is."""

    def __post_init__(self) -> None:
        check_number("the p of a flip", self.p, 0, 1)

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """1 where the frame is flipped."""
        return uniforms < self.p

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Flip where the parameter is 1."""
        from featurecache.augment import frames

        frames.change(images, parameters[:, 0] == 1, frames.flipped)
