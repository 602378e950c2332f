"""Millions of short strings in two buffers: all their bytes end to end, and where each one stops."""

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsIndex, overload

import numpy as np

__all__ = ["Keys", "PackedBytes", "Packer", "narrow"]

_BLOCK = 1 << 13
"""Strings that a walk through all of them unpacks at once."""


class PackedBytes(Sequence[bytes]):
    """Byte strings that are made when they are asked for; a copy for another process is two buffers."""

    def __init__(self, content: bytes, bounds: np.ndarray) -> None:
        """`bounds` (strings + 1,): where each one starts, and where the last one stops."""
        self.content, self.bounds = content, bounds

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedBytes": ...

    def __getitem__(self, index: "SupportsIndex | slice") -> "bytes | PackedBytes":
        if isinstance(index, slice):
            return self._part(range(len(self))[index])
        row = range(len(self))[index]
        return self.content[int(self.bounds[row]) : int(self.bounds[row + 1])]

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self), _BLOCK):
            bounds = self.bounds[start : start + _BLOCK + 1].tolist()
            for first, stop in itertools.pairwise(bounds):
                yield self.content[first:stop]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedBytes):
            return NotImplemented
        return self.content == other.content and np.array_equal(self.bounds, other.bounds)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def _part(self, rows: range) -> "PackedBytes":
        if rows.step != 1:
            return Packer(self[row] for row in rows).pack()
        bounds = self.bounds[rows.start : max(rows.start, rows.stop) + 1]
        return PackedBytes(self.content[int(bounds[0]) : int(bounds[-1])], bounds - bounds[0])


class Packer:
    """Collects byte strings, one after another."""

    def __init__(self, items: Iterable[bytes] = ()) -> None:
        self._content, self._stops = bytearray(), array("q", [0])
        for item in items:
            self.append(item)

    def append(self, item: bytes) -> None:
        """The next one."""
        self._content += item
        self._stops.append(len(self._content))

    def pack(self) -> PackedBytes:
        """All of them, as short as they fit."""
        return PackedBytes(bytes(self._content), narrow(np.frombuffer(self._stops, np.int64)))


class Keys(Sequence[str]):
    """The keys of a source: a sequence of strings that is equal to a list of the same ones."""

    def __init__(self, packed: PackedBytes) -> None:
        self.packed = packed

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Keys":
        """Names that are no valid text are kept as they are; `check_keys` tells them."""
        return cls(Packer(key.encode(errors="surrogatepass") for key in keys).pack())

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Keys": ...

    def __getitem__(self, index: "SupportsIndex | slice") -> "str | Keys":
        if isinstance(index, slice):
            return Keys(self.packed[index])
        return self.packed[index].decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (key.decode(errors="surrogatepass") for key in self.packed)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return self.packed == other.packed
        if not isinstance(other, list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"Keys({list(self[:3])}{', ...' if len(self) > 3 else ''})"


def narrow(values: np.ndarray) -> np.ndarray:
    """The same whole numbers, in the smallest of int16, int32 and int64 that holds all of them."""
    lowest, highest = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values.astype(np.int64)
