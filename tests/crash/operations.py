"""Every operation on the disk that writing a cache makes, seen and steered in one place."""

import io
import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Operation:
    """One change that a process asks of the disk."""

    kind: str
    """create, write, fsync, chmod, mkdir, link, unlink, or fsync of a directory: "sync"."""
    path: Path
    target: Path | None = None
    """The new name, of a link."""
    data: bytes = b""
    """What is written."""


Around = Callable[[Operation, Callable[[], object]], object]
"""Called instead of each operation, with what would do it; returns what that returned."""


@contextmanager
def around(root: Path, call: Around) -> Iterator[None]:
    """Within, every operation below `root`, in any thread, goes through `call`."""
    with pytest.MonkeyPatch.context() as patch:
        _patch_names(patch, root, call)
        _patch_fsync(patch, root, call)
        _patch_open(patch, root, call)
        yield


@contextmanager
def recorded(root: Path) -> Iterator[list[Operation]]:
    """Within, the operations are noted in the list, in the order in which they were done."""
    done: list[Operation] = []

    def note(operation: Operation, do: Callable[[], object]) -> object:
        result = do()
        done.append(operation)
        return result

    with around(root, note):
        yield done


def _patch_names(patch: pytest.MonkeyPatch, root: Path, call: Around) -> None:
    for kind in ("chmod", "mkdir", "link", "unlink"):
        real = getattr(os, kind)

        def changed(path, *more, kind=kind, real=real, **named):
            if not _is_below(path, root):
                return real(path, *more, **named)
            target = Path(more[0]) if kind == "link" else None
            return call(Operation(kind, Path(path), target), partial(real, path, *more, **named))

        patch.setattr(os, kind, changed)


def _patch_fsync(patch: pytest.MonkeyPatch, root: Path, call: Around) -> None:
    real = os.fsync

    def fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not _is_below(path, root.parent):
            return real(descriptor)
        return call(Operation("sync" if path.is_dir() else "fsync", path), partial(real, descriptor))

    patch.setattr(os, "fsync", fsync)


def _patch_open(patch: pytest.MonkeyPatch, root: Path, call: Around) -> None:
    real = pathlib.Path.open

    def opened(path, mode="r", *more, **named):
        if mode != "xb" or not _is_below(path, root):
            return real(path, mode, *more, **named)
        return call(Operation("create", path), lambda: _Written(path, call))

    patch.setattr(pathlib.Path, "open", opened)


class _Written(io.FileIO):
    """A file whose every write is an operation, where a buffered one gathers small ones."""

    def __init__(self, path: Path, call: Around) -> None:
        super().__init__(path, "xb")
        self._path, self._call = path, call

    def write(self, data):
        write = super().write
        return self._call(Operation("write", self._path, data=bytes(data)), lambda: write(data)) if data else 0


def _is_below(path: str | Path, root: Path) -> bool:
    return Path(path).is_relative_to(root)
