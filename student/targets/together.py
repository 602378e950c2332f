"""Targets of several caches as one: the rows of each that have the same key."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from featurecache.types import OutputSpec
from student.targets.base import Targets, Values

__all__ = ["Member", "Together"]


@dataclass(frozen=True, slots=True)
class Member:
    """Targets of one cache among several."""

    targets: Targets
    row_of: np.ndarray | None = None
    """int64 (rows of the first cache,): the row here with the same key, -1 for none; None for the first cache."""

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """int64: the rows here of some rows of the first cache."""
        return rows if self.row_of is None else self.row_of[rows]


@dataclass(frozen=True)
class Together:
    """All outputs of all members; no name is in two of them, and no row that is asked for is missing in one."""

    members: Sequence[Member]

    @cached_property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """What there is."""
        return {name: spec for member in self.members for name, spec in member.targets.outputs.items()}

    @property
    def stored_bytes(self) -> int:
        """Bytes of one view of all rows, in files."""
        return sum(member.targets.stored_bytes for member in self.members)

    @property
    def is_even(self) -> bool:
        """Whether all rows are of one length."""
        return all(member.targets.is_even for member in self.members)

    def gather(
        self,
        plan: Iterable[np.ndarray],
        *,
        views: Iterable[np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
        device: torch.device,
    ) -> Iterator[Values]:
        """As `Targets.gather`."""
        asked = [(member, self._own(member, outputs)) for member in self.members]
        plans = itertools.tee(plan, len(asked))
        shown = itertools.tee(views, len(asked)) if views is not None else [None] * len(asked)
        streams = [
            member.targets.gather(map(member.rows, own_plan), views=own_views, outputs=names, device=device)
            for (member, names), own_plan, own_views in zip(asked, plans, shown, strict=True)
        ]
        return (_merged(values) for values in zip(*streams, strict=False))

    def read(
        self,
        rows: np.ndarray,
        *,
        view: int | np.ndarray = 0,
        outputs: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Values:
        """As `Targets.read`."""
        return _merged(
            member.targets.read(member.rows(rows), view=view, outputs=self._own(member, outputs), device=device)
            for member in self.members
        )

    def will_need(self, rows: np.ndarray, *, view: int | np.ndarray = 0) -> None:
        """As `Targets.will_need`."""
        for member in self.members:
            member.targets.will_need(member.rows(rows), view=view)

    def held_on(self, device: torch.device, rows: np.ndarray, *, views: int) -> "Together":
        """As `Targets.held_on`."""
        return Together(
            [
                replace(member, targets=member.targets.held_on(device, member.rows(rows), views=views))
                for member in self.members
            ]
        )

    def _own(self, member: Member, outputs: Sequence[str] | None) -> list[str]:
        own = member.targets.outputs
        return [name for name in (own if outputs is None else outputs) if name in own]


def _merged(each: Iterable[Values]) -> Values:
    return {name: value for values in each for name, value in values.items()}
