"""Cached targets and the inputs they belong to, joined into training batches."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch

from featurecache.augment import Augmentation, ImageAugmentation
from featurecache.errors import CorruptCacheError, FeatureCacheError
from featurecache.frames import Frames
from featurecache.inputs import Input
from featurecache.loader import Finished, Loaded, finish, load
from featurecache.sources.base import Source
from featurecache.store.reader import CacheReader
from featurecache.store.stored_inputs import StoredInputs
from featurecache.transfer import Transfer
from featurecache.types import NO_LABEL, Reason
from student.alignment import Alignment, CheckInputs
from student.objectives.base import Batch, Mix
from student.order import Shuffle, available_memory, choose_shuffle
from student.steps import PlannedStep, plan_steps, samples_a_step, steps_in_order
from student.targets import FromCache, Residency, Targets, Values, place, place_inputs
from student.views import PLAIN, Views

__all__ = ["CachedData", "TrainingData"]

_BANK = 1
"""Keeps the draws of the bank apart from those of the order."""


@runtime_checkable
class TrainingData(Protocol):
    """What the trainer asks of its data."""

    device: torch.device
    """Where the batches are."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of an epoch."""
        ...

    def shuffled(
        self, batch_size: int, *, seed: int, start: int, stop: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of steps [start, stop), each a function of (seed, step); of each the n-th of m equal parts."""
        ...

    def in_order(self, batch_size: int, *, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Every row once, in batches; of these the `first`, and every so many after it."""
        ...

    def keys_of(self, rows: torch.Tensor) -> list[str]:
        """The keys of some of a batch's `rows`, int64 (n,), to name them in an error."""
        ...


class CachedData:
    """Batches over some samples of a source: the student's inputs, their labels, and the targets of a cache's rows.

    Without a reader there are labels only, and samples that cannot be decoded are left out of their batch.
    """

    def __init__(
        self,
        source: Source,
        network_input: Input,
        *,
        samples: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | None = None,
        sample_of: np.ndarray | None = None,
        reader: CacheReader | None = None,
        outputs: Sequence[str] = (),
        targets: Targets | None = None,
        residency: Residency = "auto",
        views: Views = PLAIN,
        stored: StoredInputs | None = None,
        check_inputs: CheckInputs = "sample",
        bank_rows: int = 0,
        bank_outputs: Sequence[str] | None = None,
        shuffle: Literal["auto"] | Shuffle = "auto",
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> None:
        """`samples`, `labels` and `rows` are int64 and of equal length, a part of what `join` returns; `sample_of` is
        all of it, for what samples are mixed with. `outputs` are the reader's that are compared with what the samples
        are now, and the targets, unless other `targets` are given; `residency` says where those are.

        `bank_outputs` are those that batches have of `bank_rows` other rows, by default all that are one dense vector.
        With `stored` the inputs come from the cache, and the samples are its rows. `shuffle` is "global" or, for a
        cache that does not fit in memory, "blocks"; "auto" looks at what is available.
        """
        self.source = source
        self.input = network_input
        self.samples, self.labels = samples, labels
        self.rows = samples if rows is None else rows
        self.reader = reader
        self.outputs = tuple(outputs)
        self.views = views
        self.stored = stored
        self.bank_rows = min(bank_rows, max(samples.size - 1, 0))
        self._bank_outputs = bank_outputs
        self.device = torch.device(device)
        self.workers = workers
        self.targets: Targets | None = None
        self.placement = ""
        """Where targets and stored inputs are, in words; empty where that is no news."""
        if reader is not None:
            given = FromCache(reader, {name: name for name in self.outputs}) if targets is None else targets
            count, shown = len(reader), views.count
            self.targets, self.placement = place(
                given, self.rows, total=count, views=shown, device=self.device, how=residency
            )
        if stored is not None:
            self.stored, told = place_inputs(stored, self._shown_rows(), device=self.device, how=residency)
            self.placement = "; ".join(filter(None, (self.placement, told)))
        self.shuffle: Shuffle = self._shuffle_that_fits() if shuffle == "auto" else shuffle
        self._sample_of = self._places() if sample_of is None else sample_of
        self._label_of = np.full(len(source), NO_LABEL)
        self._label_of[samples] = labels
        self._undecoded: np.ndarray | None = None
        if reader is not None and views.count > 1:
            self._undecoded = _undecoded(reader, self.outputs, views.count)
        self.checks: Alignment | None = None
        if reader is not None and stored is None:
            self.checks = Alignment(reader, self.outputs, network_input, self._sample_of, level=check_inputs)

    def __len__(self) -> int:
        return int(self.samples.size)

    def only(self, chosen: np.ndarray) -> "CachedData":
        """The same data, these positions of it only."""
        part = copy.copy(self)
        part.samples, part.labels, part.rows = self.samples[chosen], self.labels[chosen], self.rows[chosen]
        part.bank_rows = min(self.bank_rows, max(part.samples.size - 1, 0))
        return part

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in the data; one smaller batch where there is not a full one."""
        return max(len(self) // samples_a_step(batch_size, self.views), 1)

    def shuffled(
        self, batch_size: int, *, seed: int, start: int, stop: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of steps [start, stop). What a step holds is a function of (seed, step) and the shuffle alone.

        A batch holds `batch_size` images or texts: some views of each of its samples. `part` is (n, m): only the n-th
        of m equal parts of each, in order; samples at the end that make no equal parts are left out. Banks are whole.
        """
        plan, chosen = itertools.tee(self._plan(batch_size, seed=seed, start=start, stop=stop))
        batches = self._batches(step.part(*part) for step in plan)
        if not self.bank_rows or self.targets is None:
            yield from batches
            return
        wanted = self._bank_outputs
        if wanted is None:  # all but what is sparse, or there for each token
            sample = self.targets.read(self.rows[:1])
            wanted = [name for name, it in sample.items() if isinstance(it, torch.Tensor) and it.ndim == 2]
        others = (self._others(step, np.random.default_rng((seed, start + step.number, _BANK))) for step in chosen)
        asked, drawn = itertools.tee(others)
        banks = self.targets.gather(asked, outputs=wanted, device=self.device)
        transfer = Transfer(self.device)
        for batch, bank, rows in zip(batches, banks, drawn, strict=False):
            yield replace(
                batch,
                bank={name: values for name, values in bank.items() if isinstance(values, torch.Tensor)},
                bank_labels=transfer.send(self._label_of[self._sample_of[rows]]),
            )

    def in_order(self, batch_size: int, *, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """The plain view of every row once, in the cache's order; of the batches the `first`, and then each `every`."""
        return self._batches(steps_in_order(len(self), batch_size, first=first, every=every))

    def keys_of(self, rows: torch.Tensor) -> list[str]:
        """The keys of rows of the cache, int64 (n,); of samples of the source where there is no cache."""
        keys = self.source.keys if self.reader is None else self.reader.keys
        return [keys[row] for row in rows.tolist()]

    def _plan(self, batch_size: int, *, seed: int, start: int, stop: int) -> Iterator[PlannedStep]:
        return plan_steps(
            self.rows,
            total=len(self.source if self.reader is None else self.reader),
            views=self.views,
            shuffle=self.shuffle,
            batch_size=batch_size,
            seed=seed,
            start=start,
            stop=stop,
            fetch=self._fetch,
        )

    def _fetch(self, rows: np.ndarray, views: np.ndarray) -> None:
        if self.targets is not None:
            for view in views.T:
                self.targets.will_need(rows, view=view)

    def _shown_rows(self) -> np.ndarray:
        """int64: rows whose inputs are needed; those that others are mixed with may be any."""
        augmentation = self._augmentation
        if self.reader is not None and isinstance(augmentation, ImageAugmentation) and augmentation.mixes:
            return np.arange(len(self.reader))
        return self.rows

    def _shuffle_that_fits(self) -> Shuffle:
        if self.reader is None or self.targets is None:
            return "global"
        stored = self.views.count * self.targets.stored_bytes
        stored += self.stored.stored_bytes if self.stored and not self.stored.is_held else 0
        part = len(self) / len(self.reader)
        return choose_shuffle(round(part * stored), available_memory())

    def _batches(self, plan: Iterator[PlannedStep]) -> Iterator[Batch]:
        plan, told = itertools.tee(plan)
        targets: Iterator[Values] = itertools.repeat({})
        if self.targets is not None:
            told, asked, again = itertools.tee(told, 3)
            rows = (np.repeat(self.rows[step.positions], step.views.shape[1]) for step in asked)
            views = (step.views.reshape(-1) for step in again)
            targets = self.targets.gather(rows, views=views, device=self.device)
        transfer = Transfer(self.device)
        loading = zip(told, self._load(self._frames(step) for step in plan), strict=False)
        moving = ((step, loaded, transfer.begin(loaded.inputs)) for step, loaded in loading)
        for step, loaded, inputs in transfer.ahead(moving):
            finished = finish(loaded, inputs.arrived(), self._augmentation)
            if finished.asked.size or self.reader is not None:
                self._check(loaded)
                yield self._batch(step, loaded, finished, next(targets), transfer)

    def _frames(self, step: PlannedStep) -> Frames:
        samples = self.samples[step.positions]
        if self.reader is None or self._augmentation is None or not step.views.any():
            frames = Frames.plain(samples)
        else:
            stored = self.reader.stored_views
            assert stored is not None
            frames = stored.frames(self.rows[step.positions], step.views, self._sample_of, bad=self._undecoded)
        return self.checks.marked(frames, step.number) if self.checks else frames

    def _load(self, plan: Iterator[Frames]) -> Iterator[Loaded]:
        if self.stored is not None:
            return self.stored.load(plan, self.input, device=self.device)
        return load(self.source, self.input, plan, workers=self.workers, pin_memory=self.device.type == "cuda")

    @property
    def _augmentation(self) -> Augmentation | None:
        views = self.reader.stored_views if self.reader is not None and self.views.count > 1 else None
        return views.augmentation if views else None

    def _check(self, loaded: Loaded) -> None:
        """The teacher saw this very data, and it decodes here too."""
        if self.checks:
            self.checks.check(loaded, self.source.keys)
        if self.reader is not None and loaded.reasons.any():  # of a partner, too: bad ones are not asked for
            key = self.source.keys[int(loaded.rows[np.flatnonzero(loaded.reasons)[0]])]
            raise FeatureCacheError(f"sample {key!r} was decoded for the teacher and cannot be decoded here")

    def _batch(
        self, step: PlannedStep, loaded: Loaded, finished: Finished, targets: Values, transfer: Transfer
    ) -> Batch:
        at = np.repeat(step.positions, step.views.shape[1])[finished.asked]
        return Batch(
            inputs=finished.inputs,
            targets=targets,
            labels=transfer.send(self.labels[at]),
            rows=transfer.send(self.rows[at]),
            mix=self._mix(loaded, finished, transfer, always=step.is_part),
        )

    def _mix(self, loaded: Loaded, finished: Finished, transfer: Transfer, *, always: bool) -> Mix | None:
        """Labels and shares of what the frames were mixed with; None if none was, or, with `always`, none can be."""
        is_mixed = finished.partners >= 0
        if not isinstance(self._augmentation, ImageAugmentation) or not self._augmentation.mixes:
            return None
        if not (always or is_mixed.any()):
            return None
        shares = self._augmentation.own_share(loaded.frames.parameters[finished.asked])
        partners = loaded.rows[loaded.frames.shows[finished.partners]]
        labels = np.where(is_mixed, self._label_of[partners], NO_LABEL)
        share = np.where(is_mixed, shares, 1).astype(np.float32)
        return Mix(transfer.send(labels), transfer.send(share))

    def _others(self, step: PlannedStep, draw: np.random.Generator) -> np.ndarray:
        """int64: rows for a bank, none of them of the step."""
        pool = self.rows if step.near is None else self.rows[step.near]
        taken = len(step.positions)
        others = pool[draw.choice(len(pool), min(self.bank_rows + taken, len(pool)), replace=False)]
        return others[~np.isin(others, self.rows[step.positions])][: self.bank_rows]

    def _places(self) -> np.ndarray:
        """int64 (rows of the cache,): the sample of each row, -1 where it has none."""
        count = len(self.reader) if self.reader is not None else int(self.rows.max(initial=-1)) + 1
        found = np.full(count, -1)
        found[self.rows] = self.samples
        return found


def _undecoded(reader: CacheReader, outputs: Sequence[str], views: int) -> np.ndarray:
    """bool (rows of the cache,): which could not be decoded for the teacher.

    Raises CorruptCacheError for a cache that does not say what its views are.
    """
    stored = reader.stored_views
    if stored is None or stored.stop < views:
        raise CorruptCacheError(f"split {reader.split!r} has outputs of {views} views and does not say what they are")
    reasons = reader.reasons(next(iter(outputs or reader.outputs)))
    return ~np.isin(reasons, (Reason.VALID, Reason.NOT_FINITE, Reason.NO_OUTPUT))
