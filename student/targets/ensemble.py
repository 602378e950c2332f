"""Logits of several teachers as those of one: their mean, or the logarithm of their mean probabilities."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from featurecache.types import OutputSpec
from student.targets.base import Targets, Values

__all__ = ["Ensemble", "How", "ensemble_logits"]

How: TypeAlias = Literal["logits", "probabilities"]
"""What is averaged."""


@dataclass(frozen=True)
class Ensemble:
    """The same targets, and "logits" of all members together."""

    targets: Targets
    members: Sequence[str]
    """Outputs that are dense logits of the same classes."""
    how: How
    temperature: float = 1.0
    """At which the mean of probabilities is exact: that of the objective."""

    @cached_property
    def outputs(self) -> dict[str, OutputSpec]:
        """What there is."""
        first = self.targets.outputs[self.members[0]]
        return {**self.targets.outputs, "logits": OutputSpec("logits", first.shape, first.classes)}

    @property
    def stored_bytes(self) -> int:
        """Bytes of one view of all rows, in files."""
        return self.targets.stored_bytes

    @property
    def is_even(self) -> bool:
        """Whether all rows are of one length."""
        return self.targets.is_even

    def gather(
        self,
        plan: Iterable[np.ndarray],
        *,
        views: Iterable[np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
        device: torch.device,
    ) -> Iterator[Values]:
        """As `Targets.gather`."""
        batches = self.targets.gather(plan, views=views, outputs=self._needed(outputs), device=device)
        return (self._joined(batch, outputs) for batch in batches)

    def read(
        self,
        rows: np.ndarray,
        *,
        view: int | np.ndarray = 0,
        outputs: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Values:
        """As `Targets.read`."""
        values = self.targets.read(rows, view=view, outputs=self._needed(outputs), device=device)
        return self._joined(values, outputs)

    def will_need(self, rows: np.ndarray, *, view: int | np.ndarray = 0) -> None:
        """As `Targets.will_need`."""
        self.targets.will_need(rows, view=view)

    def held_on(self, device: torch.device, rows: np.ndarray, *, views: int) -> "Ensemble":
        """As `Targets.held_on`; each member is held by itself."""
        return replace(self, targets=self.targets.held_on(device, rows, views=views))

    def _needed(self, outputs: Sequence[str] | None) -> list[str] | None:
        if outputs is None:
            return None
        others = [name for name in outputs if name != "logits"]
        return [*dict.fromkeys([*others, *(self.members if "logits" in outputs else ())])]

    def _joined(self, values: Values, outputs: Sequence[str] | None) -> Values:
        if outputs is not None and "logits" not in outputs:
            return values
        members = [values[name] for name in self.members]
        assert all(isinstance(member, Tensor) for member in members)  # whoever makes an ensemble has seen to it
        logits = ensemble_logits(
            [member for member in members if isinstance(member, Tensor)], self.how, self.temperature
        )
        everything: Mapping[str, Tensor | object] = {**values, "logits": logits}
        return {name: everything[name] for name in (outputs or everything)}  # type: ignore[misc]


def ensemble_logits(members: Sequence[Tensor], how: How, temperature: float) -> Tensor:
    """(batch, classes) of each member -> logits z with softmax(z / T) the mean of the members' softmax(z / T), or the
    plain mean of the logits, whose softmax is the normalised geometric mean of theirs."""
    if how == "logits":
        return torch.stack(list(members)).mean(0)
    each = torch.stack([torch.log_softmax(member / temperature, dim=1) for member in members])
    return temperature * (each.logsumexp(0) - math.log(len(members)))
