"""What each training step is about: which samples, in which of their views, a function of (seed, step) alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from student.order import BLOCK, GROUP, Shuffle, block_order, global_order
from student.views import Views

__all__ = ["PlannedStep", "plan_steps", "samples_a_step", "steps_in_order"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What one batch is about."""

    number: int
    """How many came before it in this run."""
    positions: np.ndarray
    """int64 (samples,)."""
    views: np.ndarray
    """int64 (samples, views): in which of their views they are shown."""
    near: np.ndarray | None = None
    """int64: the positions that are in memory, from which a bank can be drawn; None where all are."""
    is_part: bool = False
    """Whether other processes have the rest."""

    def part(self, number: int, of: int) -> "PlannedStep":
        """One of so many equal parts of the batch."""
        if of == 1:
            return self
        size = len(self.positions) // of
        own = slice(number * size, (number + 1) * size)
        return replace(self, positions=self.positions[own], views=self.views[own], is_part=True)


def samples_a_step(batch_size: int, views: Views) -> int:
    """Samples of a batch that holds `batch_size` of their views."""
    return max(batch_size // views.per_sample, 1)


def plan_steps(
    rows: np.ndarray,
    *,
    total: int,
    views: Views,
    shuffle: Shuffle,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    fetch: Callable[[np.ndarray, np.ndarray], None],
) -> Iterator[PlannedStep]:
    """Steps [start, stop) over these rows, int64 (samples,), of a cache with `total` of them.

    `fetch` is told of rows and their views, (rows,) and (rows, views), before they are wanted, where rows are shuffled
    in blocks.
    """
    each, window = samples_a_step(batch_size, views), BLOCK * GROUP
    per_epoch = max(rows.size // each, 1)
    epoch, order, fetched = -1, np.arange(0), 0
    for step in range(start, stop):
        at = step % per_epoch * each
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = _order(rows.size, shuffle, seed, epoch)
            fetched = at // window * window
        while shuffle == "blocks" and fetched < min(at + window, len(order)):  # the next group comes meanwhile
            coming = rows[order[fetched : fetched + window]]
            fetch(coming, views.shown(coming, total, seed=seed, epoch=epoch))
            fetched += window
        last = max(min(at, len(order) - window), 0)
        positions = order[at:][:each]
        shown = views.shown(rows[positions], total, seed=seed, epoch=epoch)
        yield PlannedStep(step - start, positions, shown, order[last:][:window] if shuffle == "blocks" else None)


def steps_in_order(samples: int, batch_size: int, *, first: int, every: int) -> Iterator[PlannedStep]:
    """The plain view of every sample once; of the batches the `first`, and then each `every`."""
    for number, at in enumerate(range(first * batch_size, samples, every * batch_size)):
        positions = np.arange(at, min(at + batch_size, samples))
        yield PlannedStep(number, positions, np.zeros((len(positions), 1), np.int64))


def _order(samples: int, shuffle: Shuffle, seed: int, epoch: int) -> np.ndarray:
    if shuffle == "blocks":
        return block_order(samples, seed=seed, epoch=epoch, block=BLOCK, group=GROUP)
    return global_order(samples, seed=seed, epoch=epoch)
