"""Cached targets and a source's inputs, joined by key into training batches."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch

from featurecache.errors import FeatureCacheError, IdentityError, UsageError
from featurecache.inputs import Input, Inputs
from featurecache.loader import Loaded, load
from featurecache.sources.base import Source
from featurecache.store.reader import CacheReader
from featurecache.types import NO_LABEL, SparseLogits
from student.objectives.base import Batch
from student.order import BLOCK, GROUP, Shuffle, available_memory, block_order, choose_shuffle, global_order

__all__ = ["CachedData", "Joined", "TrainingData", "join"]

_BANK = 1
"""Keeps the draws of the bank apart from those of the order."""


@dataclass(frozen=True, slots=True)
class Joined:
    """How the samples of a source meet the rows of a cache."""

    rows: np.ndarray
    """int64: usable rows of the cache, ascending."""
    samples: np.ndarray
    """int64: the source's index of each usable row."""
    labels: np.ndarray
    """int64: the source's label of each usable row, NO_LABEL where there is none."""
    invalid: int
    """Rows left out because the teacher has no output for them."""
    missing: int
    """Samples of the source that the cache does not have."""
    changed_labels: int
    """Rows whose label in the source is not the one in the cache; the source's wins."""


def join(
    reader: CacheReader,
    source: Source,
    outputs: Sequence[str],
    *,
    missing: Literal["refuse", "skip"] = "refuse",
    max_invalid: float = 0.01,
) -> Joined:
    """Match a source to a cache by key, never by position, and leave out rows without valid outputs.

    Raises UsageError if the source has samples that the cache lacks (unless they may be skipped), if nothing is
    common to both, or if more than `max_invalid` of the common rows are invalid.
    """
    rows = reader.rows_of(source.keys)
    absent = np.flatnonzero(rows < 0)
    if absent.size and missing == "refuse":
        message = f"{absent.size:,} of {len(source):,} samples are not in the cache, such as {source.keys[absent[0]]!r}"
        raise UsageError(message, hint="give --missing skip to train without them, or the data the cache was made from")
    samples = np.flatnonzero(rows >= 0)
    samples = samples[np.argsort(rows[samples])]
    common = rows[samples]
    usable = reader.valid(outputs or None)[common]  # where labels alone teach, a bad sample is still a bad sample
    invalid = int(common.size - usable.sum())
    if not usable.any():
        raise UsageError("the data and the cache have no usable sample in common", hint="is this the right --data?")
    if invalid > max_invalid * common.size:
        message = f"{invalid:,} of {common.size:,} rows are invalid, more than --max-invalid {max_invalid:.2%}"
        raise UsageError(message, hint="`fc info CACHE` says why; repair the data, or raise --max-invalid")
    samples, common = samples[usable], common[usable]
    labels = source.labels[samples].astype(np.int64)
    changed = int((labels != _cached_labels(reader, source.class_names)[common]).sum())
    return Joined(common, samples, labels, invalid, int(absent.size), changed)


def _cached_labels(reader: CacheReader, class_names: Sequence[str]) -> np.ndarray:
    """The cache's labels as numbers of these classes; classes of other names become a number that no class has."""
    number = {name: at for at, name in enumerate(class_names)}
    numbers = [number.get(name, len(class_names)) for name in reader.class_names]
    return np.array([*numbers, NO_LABEL], np.int64)[reader.labels]  # the last one is where NO_LABEL points


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

    def shuffled(self, batch_size: int, *, seed: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps [start, stop), each a function of (seed, step)."""
        ...

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once."""
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
        reader: CacheReader | None = None,
        outputs: Sequence[str] = (),
        bank_rows: int = 0,
        shuffle: Literal["auto"] | Shuffle = "auto",
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> None:
        """`samples`, `labels` and `rows` are int64 and of equal length: a part of what `join` returns.

        `shuffle` is "global" or, for a cache that does not fit in memory, "blocks"; "auto" looks at what is available.
        """
        self.source = source
        self.input = network_input
        self.samples, self.labels = samples, labels
        self.rows = samples if rows is None else rows
        self.reader = reader
        self.outputs = tuple(outputs)
        self.bank_rows = min(bank_rows, max(samples.size - 1, 0))
        self.device = torch.device(device)
        self.workers = workers
        self.shuffle: Shuffle = self._shuffle_that_fits() if shuffle == "auto" else shuffle
        self._position = np.full(len(source), -1, np.int64)
        self._position[samples] = np.arange(samples.size)

    def __len__(self) -> int:
        return int(self.samples.size)

    def only(self, chosen: np.ndarray) -> "CachedData":
        """The same data, these positions of it only."""
        return CachedData(
            self.source,
            self.input,
            samples=self.samples[chosen],
            labels=self.labels[chosen],
            rows=self.rows[chosen],
            reader=self.reader,
            outputs=self.outputs,
            bank_rows=self.bank_rows,
            shuffle=self.shuffle,
            device=self.device,
            workers=self.workers,
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in the data; one smaller batch where there is not a full one."""
        return max(len(self) // batch_size, 1)

    def shuffled(self, batch_size: int, *, seed: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps [start, stop). What a step holds is a function of (seed, step) and the shuffle alone."""
        plan, chosen = itertools.tee(self._plan(batch_size, seed=seed, start=start, stop=stop))
        batches = self._batches(step.positions for step in plan)
        for number, (batch, step) in enumerate(zip(batches, chosen, strict=False), start):
            yield self._with_bank(batch, step, np.random.default_rng((seed, number, _BANK)))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in the cache's order."""
        return self._batches(np.arange(at, min(at + batch_size, len(self))) for at in range(0, len(self), batch_size))

    def _plan(self, batch_size: int, *, seed: int, start: int, stop: int) -> Iterator["_Step"]:
        per_epoch, window = self.steps_per_epoch(batch_size), BLOCK * GROUP
        blocks = self.shuffle == "blocks"
        epoch, order, fetched = -1, np.arange(0), 0
        for step in range(start, stop):
            at = step % per_epoch * batch_size
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = self._order(seed, epoch)
                fetched = at // window * window
            while blocks and fetched < min(at + window, len(order)):  # the next group comes while this one is used
                self._fetch(order[fetched : fetched + window])
                fetched += window
            last = max(min(at, len(order) - window), 0)
            yield _Step(order[at:][:batch_size], order[last:][:window] if blocks else None)

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        if self.shuffle == "blocks":
            return block_order(len(self), seed=seed, epoch=epoch, block=BLOCK, group=GROUP)
        return global_order(len(self), seed=seed, epoch=epoch)

    def _fetch(self, positions: np.ndarray) -> None:
        if self.reader is not None:
            self.reader.will_need(self.rows[positions], outputs=self.outputs)

    def _shuffle_that_fits(self) -> Shuffle:
        if self.reader is None:
            return "global"
        part = len(self) / len(self.reader)
        return choose_shuffle(round(part * self.reader.stored_bytes(self.outputs)), available_memory())

    def _batches(self, plan: Iterator[np.ndarray]) -> Iterator[Batch]:
        targets: Iterator[Mapping[str, torch.Tensor | SparseLogits]] = itertools.repeat({})
        if self.reader is not None:
            plan, again = itertools.tee(plan)
            rows = (self.rows[at] for at in again)
            targets = self.reader.gather(rows, outputs=self.outputs, device=self.device)
        samples = (self.samples[at] for at in plan)
        pin_memory = self.device.type == "cuda"
        for loaded in load(self.source, self.input, samples, workers=self.workers, pin_memory=pin_memory):
            if loaded.valid.size or self.reader is not None:
                yield self._batch(self._position[loaded.rows], loaded, targets)

    def _batch(
        self, at: np.ndarray, loaded: Loaded, targets: Iterator[Mapping[str, torch.Tensor | SparseLogits]]
    ) -> Batch:
        if self.reader is not None:
            self._check_aligned(self.reader, self.rows[at], loaded)
        at = at[loaded.valid]
        return Batch(
            inputs=self._move(loaded.inputs),
            targets=next(targets),
            labels=torch.from_numpy(self.labels[at]).to(self.device),
            rows=torch.from_numpy(self.rows[at]).to(self.device),
        )

    def _check_aligned(self, reader: CacheReader, rows: np.ndarray, loaded: Loaded) -> None:
        """The teacher saw these very bytes, and they decode here too."""
        changed = np.flatnonzero(loaded.content_hashes != reader.content_hashes[rows])
        if changed.size:
            key = self.source.keys[int(loaded.rows[changed[0]])]
            hint = "give the data the cache was made from, or extract again into a new cache"
            raise IdentityError(f"sample {key!r} is not what the teacher saw: its bytes differ", hint=hint)
        if loaded.valid.size < len(rows):
            key = self.source.keys[int(loaded.rows[np.flatnonzero(loaded.reasons)[0]])]
            raise FeatureCacheError(f"sample {key!r} was decoded for the teacher and cannot be decoded here")

    def _with_bank(self, batch: Batch, step: "_Step", draw: np.random.Generator) -> Batch:
        if not self.bank_rows or self.reader is None:
            return batch
        pool = self.rows if step.near is None else self.rows[step.near]
        others = pool[draw.choice(len(pool), min(self.bank_rows + len(batch.rows), len(pool)), replace=False)]
        others = others[~np.isin(others, self.rows[step.positions])][: self.bank_rows]
        dense = [name for name, target in batch.targets.items() if not isinstance(target, SparseLogits)]
        bank = self.reader.read(others, outputs=dense, device=self.device)
        return replace(batch, bank={name: rows for name, rows in bank.items() if not isinstance(rows, SparseLogits)})

    def _move(self, inputs: Inputs) -> Inputs:
        pinned = self.device.type == "cuda"  # elsewhere the memory could be gone before the copy is done
        return {name: tensor.to(self.device, non_blocking=pinned) for name, tensor in inputs.items()}


@dataclass(frozen=True, slots=True)
class _Step:
    """What one training step is about."""

    positions: np.ndarray
    """int64 (batch,)."""
    near: np.ndarray | None
    """int64: the positions that are in memory, from which a bank can be drawn; None where all are."""
