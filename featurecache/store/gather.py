"""Rows of several outputs, batch after batch: taken as they are encoded, decoded on the device that wants them.

What is encoded is two to fifty times smaller than float32, so it is what should travel; and buffers that are filled
again cost a fraction of new ones.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from featurecache.encodings import Encoding
from featurecache.errors import CorruptCacheError
from featurecache.store.view_parts import ViewParts
from featurecache.transfer import Moving, Transfer
from featurecache.types import ArraySpec, SparseLogits

__all__ = ["At", "Column", "Rows", "arrays_of", "gather", "read"]

_RING = 3
"""Sets of buffers: one in use, one ready, one being filled."""

_INLINE_BYTES = 4_000_000
"""A batch up to this size is taken in less time than a thread costs."""

At: TypeAlias = tuple[np.ndarray, "int | np.ndarray"]
"""Rows, int64 (batch,), and their view: one for all, or int64 (batch,)."""
Rows: TypeAlias = dict[str, Tensor | SparseLogits]
"""Outputs by name: float32 (batch, *shape), or sparse logits."""


@dataclass(frozen=True, slots=True)
class Column:
    """One output as it is read: the arrays that keep it and, for what a probe gives, the head on top of them."""

    name: str
    part: ViewParts
    encoding: Encoding
    head: tuple[Tensor, Tensor] | None = None
    """float32 weight (classes, dim) and bias (classes,): the output is embedding · weightᵀ + bias."""

    @property
    def arrays(self) -> dict[str, tuple[ViewParts, ArraySpec]]:
        """Where each array lies, by a name that no array of another part has."""
        return {f"{self.part.part.prefix}/{array.name}": (self.part, array) for array in self.encoding.arrays}

    def on(self, device: torch.device) -> "Column":
        """The same, with its head on a device."""
        return self if self.head is None else replace(self, head=(self.head[0].to(device), self.head[1].to(device)))

    def check(self, encoded: Mapping[str, Tensor]) -> None:
        """Raises CorruptCacheError for rows, on the CPU, that `decode` could not be trusted with."""
        try:
            self.encoding.check({name: tensor.numpy() for name, tensor in self._own(encoded).items()})
        except CorruptCacheError as error:
            raise CorruptCacheError(f"{self.part.part.prefix} cannot be decoded: {error.message}") from None

    def decode(self, encoded: Mapping[str, Tensor]) -> Tensor | SparseLogits:
        """The output from rows of its arrays, by the names that `arrays` gives them."""
        decoded = self.encoding.decode(self._own(encoded))
        if self.head is None:
            return decoded
        assert isinstance(decoded, Tensor)  # whoever gives a head has seen that it fits
        weight, bias = self.head
        return torch.addmm(bias, decoded, weight.T)

    def _own(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of this column's arrays, by the arrays' own names."""
        prefix = self.part.part.prefix
        return {array.name: encoded[f"{prefix}/{array.name}"] for array in self.encoding.arrays}


def read(
    columns: Sequence[Column], rows: np.ndarray, *, view: int | np.ndarray = 0, device: torch.device | str = "cpu"
) -> Rows:
    """Some rows (int64) of each column, in memory of their own. Raises what `PartReader.take` does."""
    device = torch.device(device)
    encoded = {key: torch.from_numpy(part.take(array, rows, view=view)) for key, (part, array) in arrays_of(columns)}
    for column in columns:
        column.check(encoded)
    moved = {key: tensor.to(device) for key, tensor in encoded.items()}
    return {column.name: column.on(device).decode(moved) for column in columns}


def gather(columns: Sequence[Column], plan: Iterable[At], *, device: torch.device | str = "cpu") -> Iterator[Rows]:
    """The rows of each batch of a plan, in order, as `read` gives them.

    Large batches are taken by one thread that runs at most three batches ahead of what was asked for; it ends with
    the iterator, and its errors are raised where their batch is asked for. The plan is iterated in the caller's thread.
    On their way to a GPU batches are one ahead more, and copied while it computes.
    """
    device = torch.device(device)
    columns = [column.on(device) for column in columns]
    arrays = dict(arrays_of(columns))
    sets = itertools.cycle([_Buffers(arrays, pinned=device.type == "cuda") for _ in range(_RING)])
    batches = iter(plan)
    first = list(itertools.islice(batches, 1))
    batch_bytes = sum(len(rows) * array.row_bytes for rows, _ in first for _, array in arrays.values())
    taken = (_taken_inline if batch_bytes <= _INLINE_BYTES else _taken_ahead)(sets, itertools.chain(first, batches))
    transfer = Transfer(device)
    for moving, borrowed in transfer.ahead(_moving(taken, columns, transfer)):
        moved = moving.arrived()
        yield {column.name: _own(column.decode(moved), borrowed) for column in columns}


def _moving(taken: "_Taken", columns: Sequence[Column], transfer: Transfer) -> Iterator[tuple[Moving, set[int]]]:
    """Checked batches whose copy to the device was begun, each with the places in memory that it was copied from."""
    for buffers, encoded in taken:
        for column in columns:
            column.check(encoded)
        moving = transfer.begin(encoded)
        buffers.free_after(moving.copied)
        yield moving, {tensor.untyped_storage().data_ptr() for tensor in encoded.values()}


class _Buffers:
    """Room for one batch of each array, which grows with the largest batch; pinned, a copy to a GPU need not wait."""

    def __init__(self, arrays: Mapping[str, tuple[ViewParts, ArraySpec]], *, pinned: bool) -> None:
        self.pinned = pinned
        self._arrays = arrays
        self._room: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def fill(self, at: At) -> dict[str, Tensor]:
        """Rows of each array, once the copy of what was here before is done."""
        if self._copied is not None:
            self._copied.synchronize()
        return {key: self._take(key, *at) for key in self._arrays}

    def free_after(self, copied: "torch.cuda.Event | None") -> None:
        """Nothing is filled before the copy to a device is done."""
        self._copied = copied

    def _take(self, key: str, rows: np.ndarray, view: int | np.ndarray) -> Tensor:
        part, array = self._arrays[key]
        longest = [int(part.lengths(rows, view=view).max(initial=0))] if array.longest else []
        shape = (len(rows), *longest, *array.shape)
        room = self._room.get(key)
        if room is None or len(room) < math.prod(shape):
            part.check(array, rows, view=view)
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            room = self._room[key] = torch.empty(math.prod(shape), dtype=dtype, pin_memory=self.pinned)
        taken = room[: math.prod(shape)].view(shape)
        part.take(array, rows, view=view, out=taken.numpy())
        return taken


_Taken: TypeAlias = Iterator[tuple[_Buffers, dict[str, Tensor]]]


def _taken_inline(sets: Iterator[_Buffers], plan: Iterable[At]) -> _Taken:
    for at in plan:
        buffers = next(sets)
        yield buffers, buffers.fill(at)


def _taken_ahead(sets: Iterator[_Buffers], plan: Iterable[At]) -> _Taken:
    waiting: deque[tuple[_Buffers, Future[dict[str, Tensor]]]] = deque()
    executor = ThreadPoolExecutor(1, "gather")
    try:
        for at in plan:
            buffers = next(sets)
            waiting.append((buffers, executor.submit(buffers.fill, at)))
            if len(waiting) == _RING:  # the next one would be filled into the oldest one's buffers
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        executor.shutdown(cancel_futures=True)


def _first(waiting: deque[tuple[_Buffers, Future[dict[str, Tensor]]]]) -> tuple[_Buffers, dict[str, Tensor]]:
    buffers, taken = waiting.popleft()
    return buffers, taken.result()


def arrays_of(columns: Iterable[Column]) -> Iterator[tuple[str, tuple[ViewParts, ArraySpec]]]:
    """Each array once, though two outputs may need it: an embedding, and the logits of a probe on it."""
    found: dict[str, tuple[ViewParts, ArraySpec]] = {}
    for column in columns:
        found.update(column.arrays)
    return iter(found.items())


def _own(value: Tensor | SparseLogits, borrowed: set[int]) -> Tensor | SparseLogits:
    """What was decoded without a copy still lies in a buffer, and gets memory of its own."""
    if isinstance(value, SparseLogits):
        return value.map(lambda item: _own_tensor(item, borrowed))
    return _own_tensor(value, borrowed)


def _own_tensor(tensor: Tensor, borrowed: set[int]) -> Tensor:
    return tensor.clone() if tensor.untyped_storage().data_ptr() in borrowed else tensor
