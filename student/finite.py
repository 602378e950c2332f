"""Whether losses stay finite, looked at now and then, and where they did not: reading one makes the device wait."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from featurecache.errors import FeatureCacheError

__all__ = ["Watch"]

_KEYS_TOLD = 4


class Watch:
    """The losses of the steps since the last look, with the rows that each step saw."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = weights
        self._unseen: list[tuple[int, Mapping[str, Tensor], list[Tensor]]] = []

    def add(self, step: int, losses: Mapping[str, Tensor], rows: list[Tensor]) -> None:
        """Scalars, the total as "loss", and int64 (batch,) of each batch; all stay on their device."""
        self._unseen.append((step, losses, rows))

    def check(self, keys_of: Callable[[Tensor], Sequence[str]], *, weights: bool = False) -> None:
        """Raises FeatureCacheError if a loss since the last look was not finite, or with `weights` one of those is not.

        `keys_of` gives the keys of rows.
        """
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        finite = torch.stack([losses["loss"].float() for _, losses, _ in unseen]).isfinite()
        if not bool(finite.all()):
            step, losses, rows = unseen[finite.tolist().index(False)]
            names = [name for name, value in losses.items() if not math.isfinite(float(value))]
            raise _not_finite(step, names, keys_of(torch.cat(rows)))
        # a finite loss may have had a gradient that was not
        if weights and not bool(torch.stack([weight.isfinite().all() for weight in self._weights]).all()):
            step, _, rows = unseen[-1]
            raise _not_finite(step, ["weights"], keys_of(torch.cat(rows)))


def _not_finite(step: int, names: Sequence[str], keys: Sequence[str]) -> FeatureCacheError:
    more = f" and {len(keys) - _KEYS_TOLD:,} more" if len(keys) > _KEYS_TOLD else ""
    told = ", ".join(map(repr, keys[:_KEYS_TOLD])) + more
    message = f"the loss is not finite at step {step:,} ({', '.join(names)}); its batch was {told}"
    hint = "lower --lr, or train in float32; the last checkpoint is from before this"
    return FeatureCacheError(message, hint=hint)
