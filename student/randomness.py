"""Random numbers of one's own: so that students trained side by side draw what each would draw alone."""

from types import TracebackType

import numpy as np
import torch

__all__ = ["Randomness", "seed_rank"]


class Randomness:
    """A state of torch's generators that is in force within `with`, and goes on where the last `with` ended."""

    def __init__(self, device: torch.device) -> None:
        """Begins with the state that torch's generators have now."""
        self._device = device
        self._own = _state(device)
        self._others = self._own

    def restore(self) -> None:
        """Put torch's generators back to where it began, or where the last `with` ended."""
        _set(self._own, self._device)

    def __enter__(self) -> None:
        self._others = _state(self._device)
        _set(self._own, self._device)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = _state(self._device)
        _set(self._others, self._device)


def seed_rank(seed: int, rank: int) -> None:
    """Give a rank behind the first random numbers of its own, so that dropout differs; the first goes on as alone."""
    if rank:
        torch.manual_seed(int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0]))


def _state(device: torch.device) -> list[torch.Tensor]:
    """Of the CPU's generator and, where the device is a GPU, of its."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
