"""Tensors on their way to a device; to a GPU on a stream of their own, so that they travel while it computes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Moving", "Transfer", "one_ahead", "sent"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Moving:
    """Tensors whose copy was begun."""

    tensors: Mapping[str, Tensor]
    copied: "torch.cuda.Event | None"
    """Comes when the copy is done; None where it is done already."""

    def arrived(self) -> dict[str, Tensor]:
        """The tensors on the device; what is computed from now on waits for them, and the caller does not."""
        if self.copied is not None:
            for tensor in self.tensors.values():
                computing = torch.cuda.current_stream(tensor.device)
                computing.wait_event(self.copied)
                tensor.record_stream(computing)  # or its memory would be given away when the copying stream is done
        return dict(self.tensors)


class Transfer:
    """The way to one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_own_stream = device.type == "cuda"
        """Whether copies run beside the computation; only from pinned memory does the caller not wait for them."""
        self._copies = torch.cuda.Stream(device) if self.is_own_stream else None

    def begin(self, tensors: Mapping[str, Tensor]) -> Moving:
        """Copy tensors to the device; those that are there already stay as they are."""
        if self._copies is None:
            return Moving({name: tensor.to(self.device) for name, tensor in tensors.items()}, None)
        with torch.cuda.stream(self._copies):
            moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
            return Moving(moved, self._copies.record_event())

    def send(self, array: np.ndarray) -> Tensor:
        """A small array on the device, as `sent` brings it there."""
        return sent(array, self.device)

    def ahead(self, moving: Iterator[Item]) -> Iterator[Item]:
        """What an iterator begins, one item later than it was begun where copies run beside the computation."""
        return one_ahead(moving) if self.is_own_stream else moving


def sent(array: np.ndarray, device: torch.device | str) -> Tensor:
    """A small array on a device, in order with what is computed there; the caller waits for nothing.

    From memory that is not pinned, a copy to a GPU waits until all that was asked of it before is done.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; each is given out when the next one has been made."""
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) == 2:
            yield waiting.pop(0)
    yield from waiting
