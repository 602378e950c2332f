"""What a power cut leaves of a disk: a model of the caches between a process and the platters.

Only what was synced is sure to survive. Data of a file survive by fsync of the file; a name, new or removed, by fsync
of its directory, and only if that directory's own name survives. All else may survive, in part and in any order.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.operations import Operation

Tree = dict[str, bytes]
"""Files that are left, by place; directories end with "/"."""


@dataclass
class File:
    """What was written to a file, and how much of it was synced."""

    data: bytes = b""
    synced: bytes = b""


@dataclass
class Directory:
    """Names as every process sees them, and as they were when the directory was last synced."""

    names: dict[str, "File | Directory"] = field(default_factory=dict)
    synced: dict[str, "File | Directory"] = field(default_factory=dict)


@dataclass(frozen=True)
class Adversary:
    """Decides what survives of that which was not synced."""

    name: str
    data: Callable[[str, File], bytes]
    """What is left of a file at a place."""
    keeps: Callable[[str, File | Directory | None], bool]
    """Whether the change of a name, to this file or to none, survives all the same."""


class Disk:
    """A directory with all that is done below it."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Directory()

    def apply(self, operation: Operation) -> None:
        """Do one operation that a real run has recorded."""
        kind, path = operation.kind, operation.path
        if kind == "sync":
            if path.is_relative_to(self.root):
                synced = self._directory(path)
                synced.synced = dict(synced.names)
            return
        folder = self._directory(path.parent)
        if kind == "create":
            folder.names[path.name] = File()
        elif kind == "write":
            folder.names[path.name].data += operation.data
        elif kind == "fsync":
            folder.names[path.name].synced = folder.names[path.name].data
        elif kind == "mkdir":
            folder.names[path.name] = Directory()
        elif kind == "link":
            self._directory(operation.target.parent).names[operation.target.name] = folder.names[path.name]
        elif kind == "unlink":
            del folder.names[path.name]

    def survivors(self, adversary: Adversary) -> Tree:
        """What is left when the power goes now."""
        return dict(_files(self.top, "", adversary))

    def _directory(self, path: Path) -> Directory:
        found = self.top
        for name in path.relative_to(self.root).parts:
            found = found.names[name]
        return found


def _files(directory: Directory, prefix: str, adversary: Adversary) -> Iterable[tuple[str, bytes]]:
    for name in sorted(directory.names.keys() | directory.synced.keys()):
        place = f"{prefix}{name}"
        before, now = directory.synced.get(name), directory.names.get(name)
        node = now if before is now or adversary.keeps(place, now) else before
        if isinstance(node, Directory):
            yield f"{place}/", b""
            yield from _files(node, f"{place}/", adversary)
        elif node is not None:
            yield place, node.synced if node.synced == node.data else adversary.data(place, node)


def _all(place: str, file: File) -> bytes:
    return file.data


def _synced(place: str, file: File) -> bytes:
    return file.synced


def _half(place: str, file: File) -> bytes:
    return file.synced + file.data[len(file.synced) :][: (len(file.data) - len(file.synced)) // 2]


def _records(place: str, file: File) -> bytes:
    return file.data if place.endswith(".json") else file.synced


def _always(place: str, now: File | Directory | None) -> bool:
    return True


def _never(place: str, now: File | Directory | None) -> bool:
    return False


def _of_records(place: str, now: File | Directory | None) -> bool:
    return place.endswith(".json") or isinstance(now, Directory)


def by_chance(seed: int) -> Adversary:
    """Keeps every second unsynced change, another choice for every seed."""

    def coin(place: str, now: File | Directory | None) -> bool:
        return hashlib.sha256(f"{seed} {place}".encode()).digest()[0] % 2 == 1

    return Adversary(f"chance {seed}", _half, coin)


KILLED = Adversary("all, as after kill -9", _all, _always)
ADVERSARIES = (
    Adversary("only what was synced", _synced, _never),
    Adversary("names, but not data", _synced, _always),
    Adversary("names, and half of the data", _half, _always),
    Adversary("names, and small files, but not large ones", _records, _always),
    Adversary("data, but not names", _all, _never),
    Adversary("names of records, but not of what they list", _all, _of_records),
    KILLED,
)
