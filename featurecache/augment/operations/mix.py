"""Two samples in one frame: mixup or cutmix with another row of the same block."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import BLOCK, Column, Drawn
from featurecache.augment.checks import check_number
from featurecache.augment.operations.crop import box_columns
from featurecache.augment.randomness import uniforms as draw_uniforms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mix"]

_VIEWS_WITH_ONE_PARTNER = 8
_PARTNERS = 1  # the stream that partners are drawn from


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Mixup or cutmix, the share drawn evenly. A sample keeps its partner for eight views in a row."""

    name: ClassVar[str] = "mix"
    uniforms: ClassVar[int] = 5
    columns: ClassVar[tuple[Column, ...]] = (
        Column("mix.offset", 0, 1 - BLOCK, BLOCK - 1, whole=True),
        Column("mix.share", 1, 0, 1),
        *box_columns("mix", 0.0),
    )

    p: float = 1.0
    """How likely a sample is mixed at all."""
    cutmix: float = 0.5
    """How likely this is cutmix and not mixup."""

    def __post_init__(self) -> None:
        check_number("the p of a mix", self.p, 0, 1)
        check_number("the cutmix of a mix", self.cutmix, 0, 1)

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """Rows from here to the partner, the own share, and the partner's box, which is 0 for mixup."""
        offsets = _offsets(drawn)
        box = _box(uniforms[:, 2], uniforms[:, 3:5])
        is_cut = uniforms[:, 1] < self.cutmix
        share = np.where(is_cut, 1 - box[:, 2] * box[:, 3], uniforms[:, 2])
        rows = np.column_stack([offsets, share, np.where(is_cut[:, None], box, 0.0)])
        is_mixed = (uniforms[:, 0] < self.p) & (offsets != 0)
        return np.where(is_mixed[:, None], rows, [column.plain for column in self.columns])

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Nothing: who is mixed with whom is the batch's affair, see `ImageAugmentation.finish`."""


def _offsets(drawn: Drawn) -> np.ndarray:
    """Whole numbers (samples,): another row of the block, all equally likely; 0 in a block of one row."""
    slow = drawn.view // _VIEWS_WITH_ONE_PARTNER
    uniform = draw_uniforms(drawn.keys, seed=drawn.seed, view=slow, count=1, stream=_PARTNERS)[:, 0]
    rows = drawn.first_row + np.arange(len(drawn.keys))
    start = rows // BLOCK * BLOCK
    others = np.minimum(start + BLOCK, drawn.rows) - start - 1
    partner = start + np.floor(uniform * others)
    partner += partner >= rows  # all but itself
    return np.where(others > 0, partner - rows, 0)


def _box(own_share: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """(samples, 4): a square of the rest's area about a point anywhere, cut at the frame's edges."""
    half = np.sqrt(1 - own_share)[:, None] / 2
    start, stop = np.maximum(middles - half, 0), np.minimum(middles + half, 1)
    return np.concatenate([start, stop - start], axis=1)
