"""The contracts: an augmentation of samples, and one operation of an augmentation of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from featurecache.types import Json, Modality

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCK", "Augmentation", "Column", "Drawn", "Operation", "accepted"]

BLOCK = 1024
"""Rows among which a sample finds the one that it is mixed with."""


class Column(NamedTuple):
    """One parameter of a view: what it is called and what numbers it may be."""

    name: str
    plain: float
    """What changes nothing."""
    low: float
    high: float
    whole: bool = False
    """Whether it is a whole number."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The samples of one split, one after the other, that parameters are drawn for."""

    keys: Sequence[str]
    sizes: np.ndarray
    """int32 (samples, 2): height and width in pixels, 0 where they are not known."""
    view: int
    seed: int
    first_row: int
    """The row of the first of them in the split."""
    rows: int
    """Rows of the whole split."""


@runtime_checkable
class Augmentation(Protocol):
    """How random views of a sample are made: plain data, and part of a cache's identity."""

    @property
    def name(self) -> str:
        """What it is called; the numbers of it are told by `to_json`."""
        ...

    @property
    def version(self) -> int:
        """Which of the augmentations that ever had this name."""
        ...

    @property
    def modality(self) -> Modality:
        """What it changes."""
        ...

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the numbers that a view is."""
        ...

    @property
    def plain(self) -> np.ndarray:
        """float32 (parameters,): a view that changes nothing."""
        ...

    def accepts(self, parameters: np.ndarray) -> bool:
        """Whether every number of float32 (n, parameters) is one that may be drawn. Others are not to be applied."""
        ...

    def to_json(self) -> Json:
        """All that decides what is drawn, as plain JSON."""
        ...

    def proof(self) -> str:
        """SHA-256 (hexadecimal) over what it draws and makes of fixed samples: code that differs gives another."""
        ...


@runtime_checkable
class Operation(Protocol):
    """One step of an image's augmentation, a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """Its name in OPERATIONS."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """The parameters of a view that are its own."""
        ...

    @property
    def uniforms(self) -> int:
        """How many random numbers it draws from, always as many."""
        ...

    def draw(self, uniforms: np.ndarray, drawn: Drawn) -> np.ndarray:
        """float64 (samples, uniforms) in [0, 1) -> (samples, columns): each row made from its own row alone."""
        ...

    def change(self, images: "Tensor", parameters: np.ndarray) -> None:
        """Change uint8 (frames, 3, side, side) in place, each as its row of float32 (frames, columns) says.

        The result is a function of the frame and its row: not of what else is in the batch, nor of the device.
        """
        ...


def accepted(columns: Sequence[Column], parameters: np.ndarray) -> bool:
    """Whether every number of float32 (n, columns) is within its column's range, and whole where it has to be."""
    low = np.array([column.low for column in columns], np.float32)
    high = np.array([column.high for column in columns], np.float32)
    whole = np.array([column.whole for column in columns], bool)
    within = (parameters >= low) & (parameters <= high)
    return bool(within.all() and (np.floor(parameters[:, whole]) == parameters[:, whole]).all())
