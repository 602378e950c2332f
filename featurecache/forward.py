"""What a teacher gives for a loaded batch: by a forward pass on its device, texts of like length together, under
autocast; or, of a teacher that is not at hand, as it was given elsewhere."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from featurecache.augment import Augmentation, ImageAugmentation
from featurecache.errors import UnknownNameError
from featurecache.inputs import Inputs
from featurecache.loader import Finished, Loaded, finish
from featurecache.store.layout import PartSpec
from featurecache.teachers.base import Layered, Recorded, Teacher
from featurecache.types import Modality

__all__ = ["PRECISIONS", "Forward", "Pass", "Passes", "Recollection", "forward_of", "rows_at_once"]

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the teacher computes in; other than float32 means autocast."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What a teacher gave for some frames of a batch."""

    frames: np.ndarray
    """int64 (rows,): which of the frames that were asked for."""
    lengths: np.ndarray
    """int64 (rows,): how many tokens each has; 1 for images, and where no network was run."""
    outputs: Mapping[str, Tensor]
    """Floating point (rows, *shape) each, on the device."""


@runtime_checkable
class Passes(Protocol):
    """Where a teacher's outputs come from."""

    device: torch.device

    def passes(self, batch: Loaded, augmentation: Augmentation | None = None) -> Iterator[Pass]:
        """What the teacher gives for the frames of a batch, a few of them at a time and none of them twice; nothing for
        frames of bad samples, and for those that it is not known of."""
        ...


def forward_of(
    teacher: Teacher | Recorded, part: PartSpec, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> Passes:
    """What gives the outputs of a part that this teacher gave, or is to give."""
    if isinstance(teacher, Recorded):
        return Recollection(teacher)
    always = {spec.name for spec in teacher.outputs}
    further = [item.output.name for item in part.outputs if item.output.name not in always]
    precision = part.identity["precision"]
    return Forward(teacher, batch_size=batch_size, device=device, precision=precision, further=further)


def rows_at_once(modality: Modality, batch_size: int) -> int:
    """How many rows to load for forward passes of this size: of texts several passes' worth, to sort them by length."""
    return batch_size * (8 if modality == "text" else 1)


class Forward:
    """Runs a teacher on loaded inputs, without gradients."""

    def __init__(
        self,
        teacher: Teacher,
        *,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        precision: str = "float32",
        further: Sequence[str] = (),
    ) -> None:
        """Moves the teacher to the device; `further` are outputs that it gives when asked only.

        Raises UnknownNameError for a precision that is none of PRECISIONS.
        """
        if precision not in PRECISIONS:
            raise UnknownNameError("precision", precision, PRECISIONS)
        self.device = torch.device(device)
        self._teacher = teacher.to(self.device)
        self._layered = self._teacher if further and isinstance(self._teacher, Layered) else None
        self._batch_size = batch_size
        self._autocast = PRECISIONS[precision]
        self._further = tuple(further)
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def passes(self, batch: Loaded, augmentation: Augmentation | None = None) -> Iterator[Pass]:
        """What the teacher gives for the frames of a loaded batch, as the augmentation finishes them.

        With CUDA nothing here waits for the device.
        """
        finished = self._finished(batch, augmentation)
        for chosen, outputs in self.outputs(finished.inputs):
            yield Pass(finished.asked[chosen], _lengths(finished.inputs, chosen), outputs)

    def outputs(self, inputs: Inputs) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """For each forward pass: int64 positions among the inputs, and every output of theirs, floating point
        (positions, *shape) on the device. Nothing for inputs without a sample."""
        if not inputs:
            return
        with torch.inference_mode():
            for chosen, batch in _by_length(inputs, self._batch_size):
                moved = self._moved(batch)
                with self._precision():
                    outputs = self._layered(moved, self._further) if self._layered else self._teacher(moved)
                yield chosen, dict(outputs)

    def _finished(self, batch: Loaded, augmentation: Augmentation | None) -> Finished:
        """The frames that a loaded batch asks for, as the teacher takes them in; images on the device, in one go."""
        are_images = isinstance(augmentation, ImageAugmentation)
        with torch.inference_mode():
            return finish(batch, self._moved(batch.inputs) if are_images else batch.inputs, augmentation)

    def _moved(self, batch: Inputs) -> Inputs:
        """The batch on the device; copied to a GPU while it still computes the batch before."""
        if self._copies is None:
            return {name: tensor.to(self.device) for name, tensor in batch.items()}
        with torch.cuda.stream(self._copies):
            moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copies)
        for tensor in moved.values():
            tensor.record_stream(computing)  # or its memory would be given away when the copying stream is done
        return moved

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._autocast)


class Recollection:
    """What a teacher that is not at hand gave once, for the plain view of samples."""

    device = torch.device("cpu")

    def __init__(self, teacher: Recorded) -> None:
        self._teacher = teacher

    def passes(self, batch: Loaded, augmentation: Augmentation | None = None) -> Iterator[Pass]:
        """What it gave for the samples of a loaded batch that could be decoded, in one pass."""
        frames = batch.valid[batch.valid < len(batch.frames)]
        known, outputs = self._teacher.recall(batch.rows[batch.frames.shows[frames]])
        if known.size:
            yield Pass(frames[known], np.ones(known.size, np.int64), outputs)


def _lengths(inputs: Inputs, chosen: np.ndarray) -> np.ndarray:
    """int64 (chosen,): how many tokens these of a batch's texts have; 1 for images."""
    return inputs["mask"].sum(1).numpy()[chosen] if "mask" in inputs else np.ones(len(chosen), np.int64)


def _by_length(inputs: Inputs, batch_size: int) -> Iterator[tuple[np.ndarray, Inputs]]:
    """Batches for the network; texts of like length together, so that little is spent on padding."""
    if "mask" not in inputs:
        for start in range(0, len(inputs["images"]), batch_size):
            chosen = np.arange(start, min(start + batch_size, len(inputs["images"])))
            yield chosen, {"images": inputs["images"][start : start + batch_size]}
        return
    lengths = inputs["mask"].sum(1).numpy()
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        longest = int(lengths[chosen].max())
        yield chosen, {name: tensor[chosen, :longest] for name, tensor in inputs.items()}
