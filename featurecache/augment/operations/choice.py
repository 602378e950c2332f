"""A few effects out of many, one after the other, as RandAugment chooses them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn
from featurecache.augment.checks import check_number
from featurecache.errors import UnknownNameError, UsageError
from featurecache.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    Effect = Callable[[Tensor, np.ndarray], Tensor]

__all__ = ["EFFECTS", "Choice"]

EFFECTS: Registry["Effect"] = Registry(
    "effect",
    shear_x="featurecache.augment.effects:shear_x",
    shear_y="featurecache.augment.effects:shear_y",
    shift_x="featurecache.augment.effects:shift_x",
    shift_y="featurecache.augment.effects:shift_y",
    rotate="featurecache.augment.effects:rotate",
    brightness="featurecache.augment.effects:brightness",
    contrast="featurecache.augment.effects:contrast",
    saturation="featurecache.augment.effects:saturation",
    sharpness="featurecache.augment.effects:sharpness",
    posterise="featurecache.augment.effects:posterise",
    solarise="featurecache.augment.effects:solarise",
    autocontrast="featurecache.augment.effects:autocontrast",
    equalise="featurecache.augment.effects:equalise",
)
_NONE = -1
_MOST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`count` effects, each drawn from all, with one strength in either direction."""

    name: ClassVar[str] = "choice"

    count: int = 2
    """How many effects follow each other."""
    magnitude: float = 0.3
    """The strength, of 1 for the strongest that there is."""
    p: float = 1.0
    """How likely each of them is; RandAugment's "identity" is what happens otherwise."""
    effects: tuple[str, ...] = tuple(EFFECTS)
    """Which effects there are to choose from."""

    def __post_init__(self) -> None:
        check_number("the count of a choice", self.count, 1, _MOST)
        check_number("the magnitude of a choice", self.magnitude, 0, 1)
        check_number("the p of a choice", self.p, 0, 1)
        if not self.effects or len(self.effects) > len(set(self.effects)):
            raise UsageError("a choice needs effects, none of them twice", hint=f"known: {', '.join(EFFECTS)}")
        for effect in self.effects:
            if effect not in EFFECTS:
                raise UnknownNameError("effect", effect, EFFECTS)

    @property
    def uniforms(self) -> int:
        """For each: whether, which, and in which direction."""
        return 3 * self.count

    @property
    def columns(self) -> tuple[Column, ...]:
        """For each: the number of the effect, -1 for none, and its signed strength."""
        numbers, strength = (_NONE, len(self.effects) - 1), (-self.magnitude, self.magnitude)
        both = (
            (
                Column(f"choice.{place}.effect", _NONE, *numbers, whole=True),
                Column(f"choice.{place}.strength", 0, *strength),
            )
            for place in range(1, self.count + 1)
        )
        return tuple(column for pair in both for column in pair)

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """Effects with replacement."""
        whether, which, sign = uniforms.reshape(len(uniforms), self.count, 3).transpose(2, 0, 1)
        effect = np.where(whether < self.p, np.floor(which * len(self.effects)), _NONE)
        strength = np.where(effect == _NONE, 0.0, np.where(sign < 0.5, -self.magnitude, self.magnitude))
        return np.stack([effect, strength], axis=2).reshape(len(uniforms), -1)

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Each effect in its turn."""
        from featurecache.augment import frames

        for place in range(self.count):
            effects, strengths = parameters[:, 2 * place], parameters[:, 2 * place + 1]
            for number, name in enumerate(self.effects):
                frames.change(images, effects == number, EFFECTS.get(name), strengths)
