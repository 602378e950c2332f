"""Byte ranges of local files at random, through a few handles that each process opens when it first needs them."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["OpenFiles"]

_MAX_HANDLES = 64
"""Far below the usual limit of 1,024 open files a process, with several sources and many workers in mind."""


class OpenFiles:
    """Reads never move a shared position, so forked workers and threads may use one object; it pickles as its paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(path.absolute() for path in paths)
        self._open = functools.lru_cache(maxsize=_MAX_HANDLES)(_Handle)

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[tuple[Path, ...]]]:
        return type(self), (self.paths,)

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of file number `file`. Raises OSError if it cannot give all of them."""
        content = os.pread(self._open(self.paths[file]).descriptor, size, offset)
        if len(content) != size:
            raise OSError(f"{self.paths[file]} is shorter than when it was opened")
        return content


class _Handle:
    """Closed when the last user lets go of it, so one that is evicted during another thread's read stays valid."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
