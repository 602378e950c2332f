"""Writing behind the teacher: one thread collects, appends, hashes and commits while the next batch is computed."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from featurecache.store.layout import OFFSETS, PartSpec, Shard
from featurecache.store.writer import CacheWriter, ShardWriter

__all__ = ["BackgroundWriter", "Rows", "first_rows"]

Rows: TypeAlias = Mapping[str, np.ndarray]
"""The next rows of a shard: (rows, *shape) for each array of the part; (tokens, *shape) for each ragged one, the rows
end to end, and "offsets" that count from the first of these tokens."""

_MOST_UNWRITTEN = 4
"""Batches that may wait for the disk: more would only use memory."""


class BackgroundWriter:
    """Appends and commits in one thread, in order, at most a few batches behind; its errors surface in the caller."""

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        self._executor = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[np.ndarray]] = deque()
        self._open: list[ShardWriter] = []
        self._rows = 0
        self._tokens: list[int] = []
        self._failed = False
        self._reasons = np.zeros(256, np.int64)

    def __enter__(self) -> "BackgroundWriter":  # noqa: PYI034 - beartype cannot check Self
        return self

    def append(self, shards: Sequence[Shard], rows: Callable[[], Sequence[Rows]]) -> None:
        """Queue one batch of the same rows in some views, a shard for each; they are committed after their last row.

        `rows` gives the batch, one for each shard, when its turn has come.
        """
        self._waiting.append(self._executor.submit(self._append, shards, rows))
        while len(self._waiting) > _MOST_UNWRITTEN or (self._waiting and self._waiting[0].done()):
            self._collect()

    def drain(self) -> None:
        """Wait until all that was queued is written."""
        while self._waiting:
            self._collect()

    @property
    def reasons(self) -> np.ndarray:
        """int64 (256,): how many of the rows that are written have each `Reason`."""
        return self._reasons

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, GeneratorExit | KeyboardInterrupt):  # stopped runs keep what they have
                self.drain()
        finally:
            self._executor.shutdown(cancel_futures=True)
            self._discard()

    def _collect(self) -> None:
        self._reasons += np.bincount(self._waiting.popleft().result(), minlength=256)

    def _append(self, shards: Sequence[Shard], rows: Callable[[], Sequence[Rows]]) -> np.ndarray:
        if self._failed:
            return np.zeros(0, np.uint8)  # a shard with a hole must never be filled up by what was queued behind it
        self._failed = True
        batches = rows()
        if not self._open:
            self._rows = 0
            self._tokens = [shard.start * _longest(self._writer.part) for shard in shards]
            for shard in shards:
                self._open.append(self._writer.open(shard))
        for place, (writer, batch) in enumerate(zip(self._open, batches, strict=True)):
            writer.append(self._placed(place, batch))
        self._rows += len(batches[0]["valid"])
        if self._rows == shards[0].rows:
            for writer in self._open:
                writer.commit()
            self._open = []
        self._failed = False
        return np.concatenate([batch["reason"] for batch in batches])

    def _placed(self, place: int, batch: Rows) -> Rows:
        """A batch of the open shard at a place, with offsets from the beginning of its view."""
        if OFFSETS.name not in batch:
            return batch
        offsets = batch[OFFSETS.name] + self._tokens[place]
        self._tokens[place] = int(offsets[-1, 1])
        return {**batch, OFFSETS.name: offsets}

    def _discard(self) -> None:
        for writer in self._open:
            writer.discard()


def first_rows(part: PartSpec, batch: Rows, count: int) -> Rows:
    """The first rows of a batch, as many as there are up to a count."""
    tokens = int(batch[OFFSETS.name][:count][-1, 1]) if OFFSETS.name in batch else 0
    return {array.name: batch[array.name][: tokens if array.longest else count] for array in part.arrays}


def _longest(part: PartSpec) -> int:
    """How many tokens each row of the ragged arrays has room for."""
    return max(array.longest for array in part.arrays)
