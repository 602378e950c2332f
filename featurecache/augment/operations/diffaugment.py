"""One of the six groups of DiffAugment's changes, as DAPT uses them: "flip_color_crop_rotate_scale_cutout"."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn
from featurecache.augment.checks import check_number
from featurecache.augment.operations.crop import box_columns

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DiffAugment"]

_GROUPS = {
    "flip": slice(0, 1),
    "colour": slice(1, 4),
    "shift": slice(4, 6),
    "rotate": slice(6, 7),
    "scale": slice(7, 9),
    "cutout": slice(9, 13),
}
"""The columns of each group, in the order in which they are applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffAugment:
    """Of six groups of changes one is drawn for each sample and view: DAPT draws it for a batch, and a batch is
    nothing that can be replayed."""

    name: ClassVar[str] = "diffaugment"
    uniforms: ClassVar[int] = 12

    flip: float = 0.5
    """How likely the group "flip" flips."""
    brightness: float = 0.1125
    """A share of white up to this is added or taken away: DAPT's 0.5 standard deviations of ImageNet's pixels."""
    saturation: float = 2.0
    """The largest factor; the smallest is 0."""
    contrast: float = 0.5
    """A factor from 1 - contrast to 1 + contrast."""
    shift: float = 0.125
    """Moved by up to this share of the side, both ways."""
    degrees: float = 15.0
    """Turned by up to this angle, both ways."""
    scale: float = 1.2
    """Width and height each scaled by 1 / scale to scale."""
    cutout: float = 0.5
    """The side of the square that is painted over, of 1 for the frame's; its middle may be anywhere."""
    fill: int = 116
    """The grey of what comes into view: the mean of ImageNet's pixels, as it is 0 where DAPT fills in."""

    def __post_init__(self) -> None:
        limits = {"flip": (0, 1), "brightness": (0, 1), "saturation": (1, 4), "contrast": (0, 1), "shift": (0, 1)}
        limits |= {"degrees": (0, 180), "scale": (1, 4), "cutout": (0, 1), "fill": (0, 255)}
        for name, (low, high) in limits.items():
            check_number(f"the {name} of diffaugment", getattr(self, name), low, high)

    @property
    def columns(self) -> tuple[Column, ...]:
        """All that any group changes: the columns of all others keep what changes nothing."""
        evenly = {
            "brightness": (0.0, -self.brightness, self.brightness),
            "saturation": (1.0, 0.0, self.saturation),
            "contrast": (1.0, 1 - self.contrast, 1 + self.contrast),
            "shift.x": (0.0, -self.shift, self.shift),
            "shift.y": (0.0, -self.shift, self.shift),
            "rotate": (0.0, -self.degrees, self.degrees),
            "scale.x": (1.0, 1 / self.scale, self.scale),
            "scale.y": (1.0, 1 / self.scale, self.scale),
        }
        columns = [Column(f"diffaugment.{name}", *numbers) for name, numbers in evenly.items()]
        return Column("diffaugment.flip", 0, 0, 1, whole=True), *columns, *box_columns("diffaugment.cutout", 0.0)

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """Evenly from every range, and then all groups but one put back to what changes nothing."""
        columns = self.columns
        low, high = (np.array([getattr(column, end) for column in columns[1:9]]) for end in ("low", "high"))
        flip = uniforms[:, 1:2] < self.flip
        everything = np.concatenate([flip, low + (high - low) * uniforms[:, 2:10], self._cutout(uniforms[:, 10:])], 1)
        group_of_column = np.repeat(np.arange(len(_GROUPS)), [part.stop - part.start for part in _GROUPS.values()])
        group = np.floor(uniforms[:, :1] * len(_GROUPS))
        return np.where(group_of_column == group, everything, [column.plain for column in columns])

    def _cutout(self, middles: np.ndarray) -> np.ndarray:
        """(samples, 4): a square about a point anywhere, cut at the frame's edges."""
        start = np.maximum(middles - self.cutout / 2, 0)
        return np.concatenate([start, np.minimum(middles + self.cutout / 2, 1) - start], axis=1)

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """The groups in their order, each where it is not what changes nothing."""
        from featurecache.augment import colours, frames, warp

        flip, brightness, saturation, contrast, right, down, angle, wide, high = parameters[:, :9].T
        frames.change(images, flip == 1, frames.flipped)
        frames.change(images, brightness != 0, colours.shifted, brightness)
        frames.change(images, saturation != 1, colours.vividness, saturation)
        frames.change(images, contrast != 1, colours.spread, contrast)
        moved = ((right != 0) | (down != 0), warp.shift(right, down))
        turned = (angle != 0, warp.rotation(angle))
        scaled = ((wide != 1) | (high != 1), warp.scaling(wide, high))
        for which, sources in (moved, turned, scaled):
            frames.change(images, which, warp.warped, sources, fill=self.fill)
        boxes = parameters[:, _GROUPS["cutout"]]
        frames.change(images, boxes[:, 2] > 0, frames.painted, boxes, fill=self.fill)
