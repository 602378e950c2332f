"""Writing behind the teacher: one thread that appends, hashes and commits while the next batch is computed."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from featurecache.store.layout import Shard
from featurecache.store.writer import CacheWriter, ShardWriter

__all__ = ["BackgroundWriter"]

_MOST_UNWRITTEN = 4
"""Batches that may wait for the disk: more would only use memory."""


class BackgroundWriter:
    """Appends and commits in one thread, in order, at most a few batches behind; its errors surface in the caller."""

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        self._executor = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[None]] = deque()
        self._open: ShardWriter | None = None
        self._rows = 0
        self._failed = False

    def __enter__(self) -> "BackgroundWriter":  # noqa: PYI034 - beartype cannot check Self
        return self

    def append(self, shard: Shard, rows: Mapping[str, np.ndarray]) -> None:
        """Queue one batch; commits the shard after its last row."""
        self._submit(lambda: self._append(shard, rows))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                while self._waiting:
                    self._waiting.popleft().result()
        finally:
            self._executor.shutdown(cancel_futures=True)
            if self._open is not None:
                self._open.discard()

    def _submit(self, work: Callable[[], None]) -> None:
        self._waiting.append(self._executor.submit(work))
        while len(self._waiting) > _MOST_UNWRITTEN or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def _append(self, shard: Shard, rows: Mapping[str, np.ndarray]) -> None:
        if self._failed:
            return  # a shard with a hole must never be filled up by what was queued behind it
        self._failed = True
        if self._open is None:
            self._open, self._rows = self._writer.open(shard), 0
        self._open.append(rows)
        self._rows += len(rows["valid"])
        if self._rows == shard.rows:
            self._open.commit()
            self._open = None
        self._failed = False
