"""An augmentation of images: operations, one after the other, on parameters that are drawn once."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featurecache.augment.base import Column, Drawn, Operation, accepted
from featurecache.augment.checks import check_name
from featurecache.augment.operations.crop import Crop
from featurecache.augment.operations.mix import Mix
from featurecache.augment.randomness import uniforms
from featurecache.augment.resample import resample
from featurecache.errors import UsageError
from featurecache.fingerprint import canonical_json
from featurecache.types import Json, Modality

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageAugmentation"]

_MOST_OPERATIONS = 16


@dataclass(frozen=True)
class ImageAugmentation:
    """Operations on one image each; a crop comes first and a mix last, and no operation comes twice."""

    name: str
    version: int
    operations: tuple[Operation, ...]
    modality: ClassVar[Modality] = "image"

    def __post_init__(self) -> None:
        check_name(self.name, self.version)
        names = [operation.name for operation in self.operations]
        if len(names) > _MOST_OPERATIONS or len(names) > len(set(names)):
            raise UsageError(f"augmentation {self.name!r} has an operation twice", hint="each may be there once")
        if "crop" in names[1:] or "mix" in names[:-1]:
            raise UsageError(f"augmentation {self.name!r} crops late or mixes early", hint="crop first, and mix last")

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """What a view's parameters are; the first four always the box that is cut out."""
        own = (operation.columns for operation in self.operations if not isinstance(operation, Crop))
        return (*Crop.columns, *(column for columns in own for column in columns))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters of a view: "box.left", "box.top", "box.width", "box.height" and those of others."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def plain(self) -> np.ndarray:
        """float32 (parameters,): what changes nothing; the box is NaN, for the plain view's own crop."""
        return np.array([column.plain for column in self.columns], np.float32)

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with others."""
        return any(isinstance(operation, Mix) for operation in self.operations)

    def accepts(self, parameters: np.ndarray) -> bool:
        """Whether float32 (n, parameters) may have been drawn: boxes within the frame or NaN, all else in range."""
        boxes = parameters[:, :4]
        boxes = boxes[~np.isnan(boxes).all(axis=1)].astype(np.float64)
        slack = 1e-6  # left and width are rounded to float32, each for itself
        is_box = accepted(Crop.columns, boxes) and (boxes[:, :2] + boxes[:, 2:] <= 1 + slack).all()
        return bool(is_box and accepted(self.columns[4:], parameters[:, 4:]))

    def draw(
        self, keys: Sequence[str], sizes: np.ndarray, *, view: int, seed: int, first_row: int, rows: int
    ) -> np.ndarray:
        """float32 (keys, parameters) of one view of samples that follow each other in a split.

        sizes: int32 (keys, 2), height and width in pixels, 0 where they are not known; `first_row`: the row of the
        first; `rows`: of the whole split. A row depends on its own key and size, and its mix on where it stands.
        """
        drawn = Drawn(keys, sizes, view, seed, first_row, rows)
        count = sum(operation.uniforms for operation in self.operations)
        numbers = uniforms(keys, seed=seed, view=view, count=count)
        result = np.tile(self.plain, (len(keys), 1))
        start, column = 0, 4
        for operation in self.operations:
            values = operation.draw(numbers[:, start : start + operation.uniforms], drawn)
            start += operation.uniforms
            first = 0 if isinstance(operation, Crop) else column
            result[:, first : first + values.shape[1]] = values
            column += 0 if isinstance(operation, Crop) else values.shape[1]
        return result

    def partner_offsets(self, parameters: np.ndarray) -> np.ndarray:
        """int64 (n,): how many rows after each of float32 (n, parameters) stands the one it is mixed with; 0: none."""
        if not self.mixes:
            return np.zeros(len(parameters), np.int64)
        return parameters[:, self.parameters.index("mix.offset")].astype(np.int64)

    def own_share(self, parameters: np.ndarray) -> np.ndarray:
        """float32 (n,): how much of a sample's label stays its own, 1 where it is not mixed."""
        if not self.mixes:
            return np.ones(len(parameters), np.float32)
        return parameters[:, self.parameters.index("mix.share")].copy()

    def finish(self, images: "Tensor", parameters: np.ndarray, partners: np.ndarray) -> "Tensor":
        """uint8 (frames, 3, side, side), cut out and resized -> uint8 (asked, 3, side, side), on the same device.

        parameters: float32 (frames, parameters); partners: int64 (asked,), the frame that each of the first ones is
        mixed with, -1 for none. Frames are changed each by itself: byte for byte the same in any batch.
        """
        images = images.clone()
        for operation, values in self._operations_on(parameters):
            operation.change(images, values)
        return self._mixed(images, parameters, partners) if self.mixes else images[: len(partners)]

    def apply(
        self, frames: Sequence[np.ndarray], parameters: np.ndarray, size: int, *, interpolation: str = "bicubic"
    ) -> "Tensor":
        """Decoded images, uint8 (height, width, 3) each -> uint8 (frames, 3, size, size), unmixed.

        parameters: float32 (frames, parameters). A frame without a box is shown whole.
        """
        import torch

        boxes = np.where(np.isnan(parameters[:, :4]), np.array([0, 0, 1, 1], np.float32), parameters[:, :4])
        cut = [resample(frame, box, size, interpolation) for frame, box in zip(frames, boxes, strict=True)]
        images = torch.from_numpy(np.stack(cut)) if cut else torch.zeros(0, 3, size, size, dtype=torch.uint8)
        return self.finish(images, parameters, np.full(len(cut), -1))

    def to_json(self) -> Json:
        """Name, version, modality, and each operation with all its options."""
        operations = [{"name": operation.name, **_options(operation)} for operation in self.operations]
        return {"name": self.name, "version": self.version, "modality": self.modality, "operations": operations}

    def proof(self) -> str:
        """SHA-256 (hexadecimal) over itself, views drawn for fixed keys, and what they make of a fixed image."""
        digest = hashlib.sha256(canonical_json(self.to_json()))
        frame = _test_image()
        keys = [f"proof/{number}" for number in range(8)]
        sizes = np.array([frame.shape[:2]] * len(keys), np.int32)
        for view in (1, 2, 9):
            parameters = self.draw(keys, sizes, view=view, seed=view, first_row=0, rows=len(keys))
            digest.update(parameters.astype("<f4").tobytes())
            for interpolation in ("bilinear", "bicubic"):
                images = self.apply([frame] * len(keys), parameters, 32, interpolation=interpolation)
                digest.update(images.numpy().tobytes())
                partners = np.arange(len(keys)) + self.partner_offsets(parameters)
                digest.update(self._mixed(images, parameters, partners).numpy().tobytes() if self.mixes else b"")
        return digest.hexdigest()

    def _operations_on(self, parameters: np.ndarray) -> Iterator[tuple[Operation, np.ndarray]]:
        """Each operation with its own columns of float32 (frames, parameters)."""
        column = 4
        for operation in self.operations:
            if isinstance(operation, Crop):
                continue
            yield operation, parameters[:, column : column + len(operation.columns)]
            column += len(operation.columns)

    def _mixed(self, images: "Tensor", parameters: np.ndarray, partners: np.ndarray) -> "Tensor":
        """uint8 (asked, 3, side, side): the first frames, those that have a partner mixed with it."""

        from featurecache.augment import frames
        from featurecache.transfer import sent

        result = images[: len(partners)].clone()
        at = np.flatnonzero(partners >= 0)
        own = parameters[at, self.parameters.index("mix.offset") :]
        mine, others = (sent(rows, images.device) for rows in (at, partners[at]))
        result[mine] = frames.mixed(images[mine], images[others], own[:, 1], own[:, 2:])
        return result


def _options(operation: Operation) -> Json:
    kinds = {field.name: field.type for field in fields(operation)}  # type: ignore[arg-type]  # all are dataclasses
    values = {name: getattr(operation, name) for name in kinds}
    # 1 and 1.0 are the same option, and must be the same JSON
    plain: dict[object, Callable[..., object]] = {
        float: float,
        tuple[float, float]: lambda two: [float(two[0]), float(two[1])],
        tuple[str, ...]: list,
    }
    return {name: plain[kind](values[name]) if kind in plain else values[name] for name, kind in kinds.items()}


def _test_image() -> np.ndarray:
    """uint8 (61, 83, 3): slopes, edges and every value, in whole numbers."""
    down, across = np.mgrid[:61, :83]
    channels = [3 * across + 5 * down, across * down, 40 * (across // 9) + 90 * (down // 7)]
    return (np.stack(channels, axis=2) % 256).astype(np.uint8)
