"""A reader in a loop beside a writer sees committed rows, with the right values, or is told that they are not there."""

import contextlib
import itertools
import os
import select

import numpy as np
import torch

from featurecache.errors import IncompleteError, UnknownNameError, UsageError
from featurecache.store.reader import open_cache
from featurecache.teachers.random_projection import RandomProjection
from tests.crash.children import has_ended, start, wait
from tests.crash.small_extraction import ROWS, SHARD_ROWS, extract_texts, make_small_and_slow


def rows_of(reader):
    """Values of the rows that can be read, shard by shard, as (row numbers, embeddings)."""
    for first in range(0, ROWS, SHARD_ROWS):
        rows = np.arange(first, min(first + SHARD_ROWS, ROWS))
        with contextlib.suppress(IncompleteError):  # "rows 16 to 31 ... are not committed"
            yield rows, reader.read(rows)["embedding"]


def open_split(root):
    """A reader, or None while there is nothing to read."""
    try:
        reader = open_cache(root).split("train")
    except (UsageError, UnknownNameError, IncompleteError):
        return None
    return reader if "embedding" in reader.outputs else None


class Gate:
    """Two processes that wait for each other, so that a slow one sees more than the end of the other's work."""

    def __init__(self) -> None:
        self._asked, self._ask = os.pipe()
        self._opened, self._open = os.pipe()

    def wait(self) -> None:
        """Ask to go on, and wait until the other has passed by."""
        os.write(self._ask, b"?")
        os.read(self._opened, 1)

    def pass_by(self) -> None:
        """Let the other go on, if it waits."""
        if select.select([self._asked], [], [], 0)[0]:
            os.read(self._asked, 1)
            os.write(self._open, b"!")

    def close(self) -> None:
        for descriptor in (self._asked, self._ask, self._opened, self._open):
            os.close(descriptor)


def stop_at(patch, gate):
    """Before every third shard, the teacher waits until the reader has looked."""
    real, rows = RandomProjection.__call__, itertools.count()

    def waiting(self, batch):
        if next(rows) % (3 * SHARD_ROWS) == 0:
            gate.wait()
        return real(self, batch)

    patch.setattr(RandomProjection, "__call__", waiting)


def test_a_reader_beside_a_writer(folder, monkeypatch):
    make_small_and_slow(monkeypatch, seconds=0)
    extract_texts(folder / "undisturbed")
    expected = open_cache(folder / "undisturbed").split("train").read(np.arange(ROWS))["embedding"]
    assert (expected != 0).any(1).all()

    root, counts, pinned, unread = folder / "cache", [], None, None
    gate = Gate()
    stop_at(monkeypatch, gate)
    child = start(lambda: extract_texts(root))
    while not has_ended(child):
        reader = open_split(root)
        if reader is None:
            continue
        seen = 0
        for rows, values in rows_of(reader):
            torch.testing.assert_close(values, expected[rows], rtol=0, atol=0)
            seen += len(rows)
        counts.append(seen)
        if pinned is None and 0 < seen < ROWS:
            pinned, at_first, unread = reader, seen, open_split(root)
        gate.pass_by()
    assert wait(child) == 0
    assert counts == sorted(counts) and len(set(counts)) > 3  # rows came while it read, and none went
    assert pinned is not None and sum(len(rows) for rows, _ in rows_of(pinned)) == at_first
    assert at_first <= sum(len(rows) for rows, _ in rows_of(unread)) < ROWS  # fixed when it was opened
    assert sum(len(rows) for rows, _ in rows_of(open_split(root))) == ROWS
    gate.close()
